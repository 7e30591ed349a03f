//! Checkpoints that are broken, foreign or malicious. Each must give one clear error that names the tensor, the name in
//! the pickle, or the position, and none may make the reader run, write or reserve anything. The good file from which
//! they are made is read back exactly.

mod torch_file;

use candle_core::{Device, Tensor};
use ofa_supernet::import::{CheckpointFile, published, read_supernet, read_supernet_from};
use ofa_supernet::{SearchSpace, Supernet};
use std::collections::HashMap;
use std::path::Path;
use torch_file::{Entries, Named, entries, zip};

const CLASSES: usize = 4;

fn space() -> SearchSpace {
    SearchSpace::named("tiny").unwrap()
}

/// A supernet's tensors under the published names, sorted.
fn tensors(net: &Supernet) -> Vec<Named> {
    let mut list: Vec<Named> = net
        .state()
        .unwrap()
        .iter()
        .map(|(name, tensor)| {
            let mut shape = tensor.dims().to_vec();
            if name == "hidden.weight" {
                shape.extend([1, 1]);
            }
            (published(name, net.space()).unwrap(), shape, tensor.flatten_all().unwrap().to_vec1().unwrap())
        })
        .collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

fn good() -> Vec<Named> {
    tensors(&Supernet::new(&space(), CLASSES, 5).unwrap())
}

fn read(bytes: &[u8]) -> Result<Supernet, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pth");
    std::fs::write(&path, bytes).unwrap();
    let result = read_supernet(&path, &space()).map_err(|e| e.to_string());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "reading wrote a file");
    result
}

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let error = read(bytes).unwrap_err();
    assert!(error.contains("net.pth") && !error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

/// The good tensors after a change.
#[track_caller]
fn changed_tensors(change: impl Fn(&mut Vec<Named>), parts: &[&str]) {
    let mut list = good();
    change(&mut list);
    refused(&zip(&entries(&list)), parts);
}

/// The good archive's entries after a change.
#[track_caller]
fn changed_entries(change: impl Fn(&mut Entries), parts: &[&str]) {
    let mut list = entries(&good());
    change(&mut list);
    refused(&zip(&list), parts);
}

/// A checkpoint with this program as its pickle.
fn with_program(program: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl".to_string(), program.to_vec()), ("a/data/0".to_string(), vec![0; 16])])
}

fn equal(net: &Supernet, other: &Supernet) -> bool {
    tensors(net) == tensors(other)
}

#[test]
fn good_files_of_every_format_and_spelling_are_read_exactly() {
    let net = Supernet::new(&space(), CLASSES, 5).unwrap();
    assert!(equal(&read(&zip(&entries(&good()))).unwrap(), &net));
    // Spellings of the published checkpoints and of newer code; counters are ignored.
    for (from, to) in [(".conv.", ".mobile_inverted_conv."), (".bn.", ".bn.bn."), ("", "module.")] {
        let mut list = good();
        for (name, ..) in &mut list {
            *name = if from.is_empty() { format!("{to}{name}") } else { name.replacen(from, to, 1) };
        }
        list.push(("first_conv.bn.num_batches_tracked".into(), vec![], vec![3.0]));
        assert!(equal(&read(&zip(&entries(&list))).unwrap(), &net), "{to}");
    }
    let map: HashMap<String, Tensor> = good()
        .into_iter()
        .map(|(name, shape, values)| (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap()))
        .collect();
    let bytes = safetensors::serialize(&map, None).unwrap();
    assert!(equal(&read(&bytes).unwrap(), &net));
    refused(&bytes[..bytes.len() - 3], &["safetensors"]);
    // A header whose length looks like the start of a pickle.
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let padded = (length + 0x7f).next_multiple_of(0x100) + 0x80;
    let mut other = (padded as u64).to_le_bytes().to_vec();
    other.extend(&bytes[8..8 + length]);
    other.resize(8 + padded, b' ');
    other.extend(&bytes[8 + length..]);
    assert_eq!(other[0], 0x80);
    assert!(equal(&read(&other).unwrap(), &net));
    assert!(equal(&read(&legacy(&good())).unwrap(), &net));
}

#[test]
fn a_resnet_is_read_exactly_in_both_spellings() {
    let space = SearchSpace::named("resnet-tiny").unwrap();
    let net = Supernet::new(&space, CLASSES, 5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pth");
    for repeated in [false, true] {
        let mut list = tensors(&net);
        for (name, ..) in &mut list {
            *name = name.replace(".residual.", ".conv.");
            if repeated {
                *name = match name.rsplit_once('.') {
                    Some((layer, last)) if layer.ends_with(".conv") => format!("{layer}.conv.{last}"),
                    Some((layer, last)) if layer.ends_with(".bn") => format!("{layer}.bn.{last}"),
                    Some((layer, last)) => format!("{layer}.linear.{last}"),
                    None => name.clone(),
                };
            }
        }
        assert!(list.iter().any(|(name, ..)| name == "input_stem.1.conv.conv.weight") != repeated);
        std::fs::write(&path, zip(&entries(&list))).unwrap();
        assert!(equal(&read_supernet(&path, &space).unwrap(), &net));
    }
}

/// PyTorch's format before 1.6.
fn legacy(list: &[Named]) -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    torch_file::text(&mut out, "little_endian");
    out.extend(b"\x88s.");
    out.extend(torch_file::program(list));
    out.extend(b"\x80\x02](");
    (0..list.len()).for_each(|index| torch_file::text(&mut out, &index.to_string()));
    out.extend(b"e.");
    for (_, _, values) in list {
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

#[test]
fn cut_and_damaged_files() {
    let bytes = zip(&entries(&good()));
    for length in [0, 1, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..length], &[]);
    }
    refused(&bytes[..bytes.len() / 2], &["zip archive", "truncated or damaged"]);
    // One flipped bit in the bytes of a tensor changes the checksum.
    let at = bytes.windows(15).position(|w| w == b"supernet/data/7").unwrap() + 15 + 2;
    let mut bad = bytes.clone();
    bad[at] ^= 4;
    refused(&bad, &["supernet/data/7", "at byte"]);
    let old = legacy(&good());
    for length in [1, 20, 60, old.len() / 2, old.len() - 1] {
        refused(&old[..length], &[]);
    }
    refused(&old[..old.len() - 1], &["at byte", "bytes are left"]);
    refused(b"hello, this is no checkpoint", &["neither", "safetensors"]);
    refused(b"\x80\x02}.", &["was not written by torch.save"]);
    // Random changes of bytes must not cause a panic.
    let mut state = 1u64;
    for _ in 0..300 {
        let mut bad = bytes.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bad.len();
            bad[at] = (state >> 20) as u8;
        }
        drop(read(&bad));
    }
}

#[test]
fn code_is_refused_by_name_and_never_run() {
    let marker = std::env::temp_dir().join(format!("ofa-hostile-{}", std::process::id()));
    let mut program = b"\x80\x02cos\nsystem\n".to_vec();
    torch_file::text(&mut program, &format!("touch {}", marker.display()));
    program.extend(b"\x85R.");
    refused(&with_program(&program), &["os.system", "at byte 2", "refused"]);
    assert!(!marker.exists(), "the pickle was executed");
    for (module, name) in
        [("builtins", "eval"), ("torch", "load"), ("torch._utils", "_rebuild_sparse_tensor"), ("x\u{7}y", "z")]
    {
        refused(&with_program(format!("c{module}\n{name}\n.").as_bytes()), &[name, "refused"]);
    }
    refused(&with_program(b"\x80\x02(iposix\nsystem\n."), &["opcode 0x69"]);
    // Allowed names must not be called with arguments that they are not meant for.
    refused(&with_program(b"\x80\x02ctorch\nFloatStorage\n)R."), &["a call of a class or function"]);
}

#[test]
fn shapes_that_are_larger_than_their_bytes() {
    let one = |elements: usize, shape: &[usize], strides: &[usize]| {
        let mut program = b"\x80\x02}".to_vec();
        torch_file::text(&mut program, "classifier.linear.bias");
        torch_file::tensor(&mut program, "0", elements, shape, strides);
        program.extend(b"s.");
        with_program(&program)
    };
    let huge = 1usize << 40;
    refused(&one(4, &[huge], &[1]), &["does not fit its storage of 4 elements"]);
    refused(&one(4, &[huge, huge], &[0, 0]), &["does not fit"]);
    refused(&one(4, &[usize::MAX >> 1, 4], &[usize::MAX >> 1, 1]), &["does not fit"]);
    // The storage itself is declared larger than its bytes.
    refused(&one(huge, &[huge], &[1]), &["classifier.linear.bias"]);
    refused(&one(usize::MAX >> 1, &[4], &[1]), &["missing"]);
    changed_entries(|list| list[8].1.truncate(4), &["tensor '", "the storage has 4 bytes in the file", "declared"]);
    changed_entries(|list| drop(list.remove(8)), &["tensor '", "supernet/data/7"]);
}

/// A file of several sets of weights: name of each dictionary, prefix of its tensors' names, bias of class 0.
fn wrapped(sets: &[(&'static str, &str, f32)]) -> Vec<u8> {
    let set = |&(name, prefix, bias): &(&'static str, &str, f32)| {
        let mut tensors = good();
        for (name, _, values) in &mut tensors {
            if name == "classifier.linear.bias" {
                values[0] = bias;
            }
            *name = format!("{prefix}{name}");
        }
        (name, tensors)
    };
    zip(&torch_file::wrapped(&sets.iter().map(set).collect::<Vec<_>>()))
}

#[test]
fn wrapped_checkpoints_are_read_and_a_choice_among_several_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pth");
    let first_bias = |sets: &[(&'static str, &str, f32)]| {
        std::fs::write(&path, wrapped(sets)).unwrap();
        let mut file = CheckpointFile::open(&path).unwrap();
        assert!(file.tensors().all(|(name, _)| !name.starts_with("module.") && !name.starts_with("_orig_mod.")));
        read_supernet_from(&mut file, &space()).unwrap();
        (file.values("classifier.linear.bias").unwrap()[0], file.choice())
    };
    for entry in ["state_dict", "model", "net", "model_state_dict", "state_dict_ema"] {
        for prefix in ["", "module.", "_orig_mod.", "module._orig_mod.", "model."] {
            assert_eq!(first_bias(&[(entry, prefix, 7.0)]), (7.0, None), "{entry} {prefix}");
        }
    }
    // The layout of `torch.optim.swa_utils.AveragedModel`.
    let mut averaged: Vec<Named> = good().into_iter().map(|(name, s, v)| (format!("module.{name}"), s, v)).collect();
    averaged.push(("n_averaged".into(), vec![], vec![4.0]));
    read(&zip(&torch_file::wrapped(&[("model", averaged)]))).unwrap();
    let (bias, choice) = first_bias(&[("state_dict_ema", "", 1.0), ("model", "", 2.0), ("state_dict", "", 3.0)]);
    let choice = choice.unwrap();
    assert_eq!(bias, 3.0);
    assert!(choice.contains("those of 'state_dict', not of 'model', 'state_dict_ema'"), "{choice}");
    // An empty entry is ignored if there is another one, and named if there is none.
    let mut program = b"\x80\x02}".to_vec();
    torch_file::text(&mut program, "model");
    program.extend(b"Ns.");
    refused(&with_program(&program), &["'model' is None", "expected a dictionary"]);
    // The search in a dictionary that contains itself ends.
    let mut program = b"\x80\x02}q\x00".to_vec();
    torch_file::text(&mut program, "model");
    program.extend(b"h\x00s.");
    refused(&with_program(&program), &["'model' is a dictionary; expected a tensor"]);
}

#[test]
fn a_pointer_of_git_lfs_is_told_from_a_damaged_file() {
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", &["Git LFS", "git lfs pull"]);
}

#[test]
fn names_in_the_archive_that_lead_elsewhere() {
    for name in
        ["../escape", "supernet/../../escape", "/etc/passwd", "supernet\\..\\x", "other/data/1", "loose", "supernet//x"]
    {
        changed_entries(|list| list.push((name.to_string(), vec![1])), &["an entry named", "one folder"]);
    }
    let mut program = b"\x80\x02}".to_vec();
    torch_file::text(&mut program, "w");
    torch_file::tensor(&mut program, "../../0", 4, &[4], &[1]);
    program.extend(b"s.");
    refused(&with_program(&program), &["../../0"]);
    changed_entries(|list| drop(list.remove(0)), &["has no 'supernet/data.pkl'"]);
    changed_entries(|list| list.push(("supernet/byteorder".into(), b"big".to_vec())), &["little-endian"]);
}

#[test]
fn tensors_that_do_not_make_the_network() {
    let at = |list: &[Named], name: &str| list.iter().position(|t| t.0 == name).unwrap();
    let project = "blocks.3.conv.point_linear.conv.weight";
    changed_tensors(|list| drop(list.remove(at(list, project))), &[project, "missing"]);
    changed_tensors(
        |list| list.push(("blocks.99.conv.x".into(), vec![1], vec![0.0])),
        &["blocks.99.conv.x", "not part of"],
    );
    changed_tensors(
        |list| {
            let index = at(list, project);
            list[index].1.swap(0, 1);
        },
        &[project, "has shape", "expected", "--space"],
    );
    changed_tensors(
        |list| {
            let index = at(list, project);
            list[index].2[5] = f32::NAN;
        },
        &[project, "element 5 is NaN"],
    );
    changed_tensors(
        |list| {
            let index = at(list, "first_conv.bn.running_var");
            list[index].2[0] = -1.0;
        },
        &["first_conv.bn.running_var", "negative"],
    );
    // The bias says three classes, the weight four.
    changed_tensors(
        |list| {
            let index = at(list, "classifier.linear.bias");
            (list[index].1, list[index].2) = (vec![3], vec![0.0; 3]);
        },
        &["classifier.linear.weight", "[4, 64]", "3 classes"],
    );
    changed_tensors(
        |list| drop(list.remove(at(list, "classifier.linear.bias"))),
        &["classifier.linear.bias", "missing"],
    );
    changed_tensors(
        |list| {
            let index = at(list, project);
            let twin =
                (project.replace(".conv.", ".mobile_inverted_conv."), list[index].1.clone(), list[index].2.clone());
            list.push(twin);
        },
        &["two spellings"],
    );
    refused(&with_program(b"\x80\x02]."), &["a list", "dictionary of tensors"]);
    refused(&with_program(b"\x80\x02}."), &["no tensors"]);
    let mut program = b"\x80\x02}".to_vec();
    torch_file::text(&mut program, "epoch");
    program.extend(b"K\x05s.");
    refused(&with_program(&program), &["'epoch' is an integer"]);
    // A supernet of another space.
    let other = tensors(&Supernet::new(&SearchSpace::named("mbv3-w0.1").unwrap(), CLASSES, 5).unwrap());
    refused(&zip(&entries(&other)), &["the space 'tiny'"]);
}

#[test]
fn views_are_read_by_their_strides() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("views.pth");
    let mut program = b"\x80\x02}".to_vec();
    torch_file::text(&mut program, "t");
    torch_file::tensor(&mut program, "0", 6, &[3, 2], &[1, 3]);
    program.extend(b"s.");
    let values: Vec<u8> = (0..6).flat_map(|v| (v as f32).to_le_bytes()).collect();
    let bytes = zip(&[("a/data.pkl".to_string(), program), ("a/data/0".to_string(), values)]);
    std::fs::write(&path, bytes).unwrap();
    let mut file = CheckpointFile::open(&path).unwrap();
    assert_eq!(file.tensors().collect::<Vec<_>>(), [("t", &[3usize, 2][..])]);
    assert_eq!(file.values("t").unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(file.values("u").unwrap_err().to_string().contains("not in the file"));
    assert!(CheckpointFile::open(Path::new("nowhere.pth")).is_err());
}
