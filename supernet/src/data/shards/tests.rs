//! Shards as users have them.

use super::*;
use crate::data::decode::tests::png;
use crate::data::{DataOptions, Dataset};
use image::ColorType;

fn grey(level: u8) -> Vec<u8> {
    png(4, 4, &[level; 48], ColorType::Rgb8)
}

/// A shard of these entries.
fn shard(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Images of the levels with their labels as `.cls`.
fn labelled(images: &[(u8, &str)]) -> Vec<u8> {
    let images: Vec<(String, Vec<u8>, &str)> =
        images.iter().map(|(level, label)| (format!("s/{level:04}"), grey(*level), *label)).collect();
    let mut entries: Vec<(String, &[u8])> = Vec::new();
    for (name, image, label) in &images {
        entries.push((format!("{name}.png"), image));
        entries.push((format!("{name}.cls"), label.as_bytes()));
    }
    shard(&entries.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>())
}

fn options(cache_bytes: usize) -> DataOptions {
    DataOptions { validation: Some(0), cache_bytes, ..Default::default() }
}

fn open(source: &Path) -> Result<Dataset> {
    Dataset::open(source.to_str().unwrap(), &options(usize::MAX))
}

/// The data as `ofa bench` opens it.
fn test_only(source: &Path) -> Result<Dataset> {
    let options = DataOptions { normalisation: Some(crate::data::Normalisation::IMAGENET), ..options(0) };
    let splits = crate::data::Splits::Test;
    Dataset::open_splits(source.to_str().unwrap(), &options, splits, &|_| std::ops::ControlFlow::Continue(()))
}

fn levels(split: &crate::data::Split) -> Vec<(u8, u32)> {
    (0..split.len()).map(|i| (split.image(i).unwrap().pixels[0], split.label(i))).collect()
}

#[test]
fn shards_are_read_in_order_from_memory_and_from_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let put = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    put("train-000.tar", &labelled(&[(9, "1"), (3, "0")]));
    put("train-001.tar", &labelled(&[(7, "0"), (200, "1")]));
    put("notes.txt", b"x");
    let data = open(root).unwrap();
    assert_eq!(data.classes, ["0", "1"]);
    assert_eq!(levels(&data.train), [(9, 1), (3, 0), (7, 0), (200, 1)]);
    assert!(data.test.is_empty() && data.notes[0].contains("no test shards"), "{:?}", data.notes);
    // Validation images are no test images beside training images.
    put("val-0.tar", &labelled(&[(6, "0")]));
    let error = test_only(root).err().unwrap().to_string();
    assert!(error.contains("test-*.tar") && error.contains("'DIR/val-*.tar'"), "{error}");
    // A folder of neutral names is a split by its own.
    let of_test = root.join("test");
    fs::create_dir(&of_test).unwrap();
    fs::copy(root.join("val-0.tar"), of_test.join("0.tar")).unwrap();
    assert_eq!(levels(&test_only(&of_test).unwrap().test), [(6, 0)]);
    fs::remove_dir_all(&of_test).unwrap();
    assert_eq!(levels(&test_only(&root.join("val-*.tar")).unwrap().test), [(6, 0)]);
    put("test-0.tar", &labelled(&[(5, "1")]));
    put("classes.txt", b"cat\ndog\n");
    let streamed = Dataset::open(root.to_str().unwrap(), &options(0)).unwrap();
    let data = open(root).unwrap();
    assert!(data.train.in_memory() && !streamed.train.in_memory());
    assert_eq!((data.classes.as_slice(), data.notes.len()), (&["cat".to_string(), "dog".into()][..], 0));
    assert_eq!((levels(&data.test), levels(&data.validation)), (vec![(5, 1)], vec![(6, 0)]));
    assert_eq!(levels(&data.train), levels(&streamed.train));
    assert_eq!((data.digest(), &data.normalisation), (streamed.digest(), &streamed.normalisation));
    // A moved folder keeps its digest, another label or image changes it.
    let moved = tempfile::tempdir().unwrap();
    for name in ["train-000.tar", "train-001.tar", "test-0.tar", "val-0.tar", "classes.txt"] {
        fs::copy(root.join(name), moved.path().join(name)).unwrap();
    }
    assert_eq!(open(moved.path()).unwrap().digest(), data.digest());
    put("train-001.tar", &labelled(&[(7, "1"), (200, "1")]));
    assert_ne!(open(root).unwrap().digest(), data.digest());
    // The name of the whole folder is no split.
    let named = moved.path().join("train");
    fs::create_dir(&named).unwrap();
    for name in ["train-000.tar", "test-0.tar", "val-0.tar"] {
        fs::copy(root.join(name), named.join(name)).unwrap();
    }
    let splits = open(&named).unwrap();
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (2, 1, 1));
    // Class folders beside shards could both be meant.
    fs::create_dir_all(named.join("train/.cache")).unwrap();
    assert_eq!(open(&named).unwrap().train.len(), 2);
    fs::create_dir_all(named.join("train/cat")).unwrap();
    let error = open(&named).unwrap_err().to_string();
    assert!(error.contains("class folders") && error.contains("train/cat") && error.contains(".tar"), "{error}");
    fs::remove_dir_all(&named).unwrap();
    // Folders of splits, and patterns.
    let root = moved.path();
    fs::create_dir(root.join("train")).unwrap();
    for name in ["train-000.tar", "train-001.tar"] {
        fs::rename(root.join(name), root.join("train").join(name)).unwrap();
    }
    assert_eq!(levels(&open(root).unwrap().train), levels(&data.train));
    // Alternatives that name a file twice read it once.
    let overlapping = ["train/{*,train-00*}.tar", "train/train-00{0,1,1}.tar"];
    let patterns = ["train/train-{000..001}.tar", "train/*.tar", "train/train-00?.tar", "train/train-00{0,1}.tar"];
    for pattern in patterns.into_iter().chain(overlapping) {
        let data = open(&root.join(pattern)).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.classes.len()), (4, 0, 2), "{pattern}");
    }
    assert_eq!(open(&root.join("train/train-001.tar")).unwrap().train.len(), 2);
}

#[test]
fn labels_are_numbers_or_names_in_text_or_json() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (a, b) = (grey(1), grey(2));
    let put = |entries: &[(&str, &[u8])]| fs::write(root.join("train-0.tar"), shard(entries)).unwrap();
    let read = || open(root).map(|data| (data.classes.clone(), levels(&data.train)));
    let expected = (vec!["cat".to_string(), "dog".into()], vec![(1, 1), (2, 0)]);
    put(&[
        ("x.png", &a),
        ("x.json", br#"{"label": "dog"}"#),
        ("y.JPEG", &b),
        ("y.cls", b"cat\n"),
        ("z.txt", b"no image"),
    ]);
    assert_eq!(read().unwrap(), expected);
    // The number in .cls precedes the .json, in either order.
    put(&[
        ("x.json", br#"{"cls": 0}"#),
        ("x.png", &a),
        ("x.cls", b"1"),
        ("y.cls", b" 0 "),
        ("y.json", b"{}"),
        ("y.png", &b),
    ]);
    assert_eq!(read().unwrap(), (vec!["0".to_string(), "1".into()], expected.1.clone()));
    fs::write(root.join("classes.txt"), "cat\ndog\n").unwrap();
    assert_eq!(read().unwrap(), expected);
    let refused = |entries: &[(&str, &[u8])], parts: &[&str]| {
        put(entries);
        let error = read().unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    };
    refused(&[("a/x.png", &a)], &["train-0.tar/a/x.png", "no label", "x.cls"]);
    refused(&[("x.png", &a), ("x.json", b"{")], &["no label"]);
    refused(&[("x.png", &a), ("x.jpg", &a), ("x.cls", b"0")], &["second image"]);
    refused(&[("x.png", &a), ("x.cls", b"2")], &["train-0.tar/x.png", "label 2", "2 classes"]);
    refused(&[("x.png", &a), ("x.cls", b"cow")], &["'cow'", "none of the 2 classes"]);
    refused(&[("x.png", &a), ("x.cls", b"0")], &["class 1 ('dog')", "empty class"]);
    refused(
        &[("x.png", &a[..30]), ("x.cls", b"0"), ("y.png", &b), ("y.cls", b"1")],
        &["train-0.tar/x.png", "truncated"],
    );
    fs::write(root.join("classes.txt"), "2\n3\n0\n").unwrap();
    refused(&[("x.png", &a), ("x.cls", b"0")], &["label 0", "name of class 2", "the class '2'", "rename"]);
    // x.mask.png is another file of the sample x, and x.2.png without x.png is an image that would be lost.
    fs::write(root.join("classes.txt"), "cat\n").unwrap();
    put(&[("x.png", &a), ("x.mask.png", &b), ("x.cls", b"0")]);
    assert_eq!(read().unwrap().1, [(1, 0)]);
    refused(&[("x.2.png", &a), ("x.2.cls", b"0")], &["train-0.tar/x.2.png", "first dot", "rename"]);
    let mut links = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    links.append_link(&mut header, "x.png", "y.png").unwrap();
    fs::write(root.join("train-0.tar"), links.into_inner().unwrap()).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains("x.png") && error.contains("is a link"), "{error}");
    fs::remove_file(root.join("classes.txt")).unwrap();
    // Beside names, digits are names, as those of folders are.
    put(&[("x.png", &a), ("x.cls", b"b"), ("y.png", &b), ("y.json", br#"{"label": "7"}"#)]);
    assert_eq!(read().unwrap(), (vec!["7".to_string(), "b".into()], vec![(1, 1), (2, 0)]));
    refused(
        &[("x.png", &a), ("x.cls", b"b"), ("y.png", &b), ("y.json", br#"{"label": 7}"#)],
        &["train-0.tar/y.png", "number 7", "'b'", "alike"],
    );
    refused(&[("x.png", &a), ("x.cls", b"4000000000")], &["largest label is 4000000000", "1 images"]);
    put(&[("x.png", &a[..30]), ("x.cls", b"0"), ("y.png", &b), ("y.cls", b"0")]);
    let options = DataOptions { skip_bad: true, ..options(0) };
    let data = Dataset::open(root.to_str().unwrap(), &options).unwrap();
    assert_eq!((levels(&data.train), data.skipped), (vec![(2, 0)], 1));
}

#[test]
fn parquet_files_are_read_with_the_names_of_their_classes() {
    use crate::data::table::tests::write;
    use parquet::basic::Compression::SNAPPY;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let rows = |levels: &[u8]| -> Vec<(Vec<u8>, i64)> {
        levels.iter().map(|&level| (grey(level), i64::from(level % 2))).collect()
    };
    let path = |name: &str| root.join(name);
    write(&path("train-00000-of-00002.parquet"), &rows(&[4, 7, 8]), Some(&["even", "odd"]), 2, SNAPPY);
    write(&path("train-00001-of-00002.parquet"), &rows(&[1, 3]), Some(&["even", "odd"]), 5, SNAPPY);
    write(&path("validation-00000-of-00001.parquet"), &rows(&[5]), None, 5, SNAPPY);
    write(&path("test-00000-of-00001.parquet"), &rows(&[6, 9]), None, 5, SNAPPY);
    let data = open(root).unwrap();
    let streamed = Dataset::open(root.to_str().unwrap(), &options(0)).unwrap();
    assert_eq!(data.classes, ["even", "odd"]);
    assert_eq!(levels(&data.train), [(4, 0), (7, 1), (8, 0), (1, 1), (3, 1)]);
    assert_eq!((levels(&data.validation), levels(&data.test)), (vec![(5, 1)], vec![(6, 0), (9, 1)]));
    assert!(!streamed.train.in_memory() && levels(&streamed.train) == levels(&data.train));
    assert_eq!(streamed.digest(), data.digest());
    let pattern = open(&root.join("train-*.parquet")).unwrap();
    assert_eq!((pattern.train.len(), pattern.test.len()), (5, 0));
    let refused = |rows: &[(Vec<u8>, i64)], parts: &[&str]| {
        write(&path("test-00000-of-00001.parquet"), rows, None, 5, SNAPPY);
        let error = open(root).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    };
    refused(&[(grey(1), 0), (grey(2), -1)], &["test-00000-of-00001.parquet/row 1", "label -1"]);
    refused(&[(grey(1), 2)], &["row 0", "label 2", "2 classes"]);
    refused(&[(Vec::new(), 1)], &["row 0", "no bytes of an image", "--skip-bad"]);
    refused(&[(b"text".to_vec(), 1)], &["row 0", "not an image"]);
}

#[test]
fn damaged_shards_and_patterns_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-0.tar");
    let whole = labelled(&[(1, "0"), (2, "0")]);
    let refused = |bytes: &[u8], parts: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        let parts = [&["train-0.tar"], parts].concat();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    };
    refused(b"", &["truncated"]);
    refused(b"no tar", &["tar"]);
    refused(&whole[..540], &["truncated", "0001.png", "540 bytes"]);
    refused(&whole[..whole.len() - 1024], &["end mark"]);
    let mut longer = whole.clone();
    longer[124..135].copy_from_slice(b"77777777777");
    refused(&longer, &["tar"]);
    for (name, reason) in [
        ("train-{0..2.tar", "not closed"),
        ("train-{5..2}.tar", "must rise"),
        ("train-{0..99999999}.tar", "at most"),
        ("train-{a..b}.tar", "'a' is not a number"),
        ("train-{0..2}.tar", "train-1.tar"),
        ("none-*.tar", "no shard"),
    ] {
        fs::write(&path, &whole).unwrap();
        let error = open(&folder.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn shards_of_several_folders_keep_their_digest_when_they_are_named_or_lie_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for split in ["a", "b"] {
        fs::create_dir(root.join(split)).unwrap();
        fs::write(root.join(split).join("train-0.tar"), labelled(&[(9, "1"), (3, "0")])).unwrap();
    }
    let moved = tempfile::tempdir().unwrap();
    for split in ["a", "b"] {
        fs::create_dir(moved.path().join(split)).unwrap();
        fs::copy(root.join(split).join("train-0.tar"), moved.path().join(split).join("train-0.tar")).unwrap();
    }
    let [here, there] = [root, moved.path()].map(|root| open(&root.join("{a,b}/train-*.tar")).unwrap().digest());
    assert_eq!(here, there);
}

#[test]
fn validation_and_test_shards_are_those_of_their_folder_whatever_their_names_begin_with() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, level) in [("train/0.tar", 1), ("val/test-0.tar", 2), ("test/0.tar", 3), ("test/val-0.tar", 4)] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), labelled(&[(level, "0"), (level + 100, "1")])).unwrap();
    }
    for source in [root.to_path_buf(), root.join("{train,val,test}/*.tar")] {
        let data = open(&source).unwrap();
        assert_eq!(levels(&data.train), [(1, 0), (101, 1)]);
        assert_eq!(levels(&data.validation), [(2, 0), (102, 1)]);
        assert_eq!(levels(&data.test), [(3, 0), (103, 1), (4, 0), (104, 1)]);
    }
}

#[test]
fn shards_of_another_split_than_their_folder_are_refused_and_words_for_it_noted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("test")).unwrap();
    let put = |name: &str| fs::write(root.join(name), labelled(&[(9, "1"), (3, "0")])).unwrap();
    put("test/train-0.tar");
    put("test/test-0.tar");
    let error = open(&root.join("test/*.tar")).unwrap_err().to_string();
    assert!(error.contains("folder of test images") && error.contains("that of training images"), "{error}");
    fs::remove_dir_all(root.join("test")).unwrap();
    put("set-train-0.tar");
    put("set-validation-0.tar");
    let notes = open(root).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("set-validation-0.tar: is trained on")), "{notes:?}");
}

#[test]
fn classes_are_those_of_training_and_their_names_lie_beside_the_shards_or_above() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for split in ["train", "test"] {
        fs::create_dir(root.join(split)).unwrap();
    }
    fs::write(root.join("train/0.tar"), labelled(&[(9, "cat"), (3, "dog"), (5, "emu")])).unwrap();
    fs::write(root.join("test/0.tar"), labelled(&[(9, "cat"), (3, "dog")])).unwrap();
    assert_eq!(test_only(root).unwrap().classes, ["cat", "dog", "emu"]);
    // Images that are not read need not be whole.
    let whole = fs::read(root.join("train/0.tar")).unwrap();
    fs::write(root.join("train/0.tar"), &whole[..700]).unwrap();
    assert_eq!(test_only(root).unwrap().classes, ["cat", "dog"]);
    for split in ["train", "test"] {
        fs::write(root.join(split).join("0.tar"), labelled(&[(9, "1"), (3, "0")])).unwrap();
    }
    for names in ["classes.txt", "test/classes.txt"] {
        fs::write(root.join(names), "ape\nbee\n").unwrap();
        assert_eq!(test_only(&root.join("test/*.tar")).unwrap().classes, ["ape", "bee"], "{names}");
        fs::remove_file(root.join(names)).unwrap();
    }
}

#[test]
fn joined_and_packed_shards_and_other_formats_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let entry = |key: &str, label: &str, level: u8| {
        shard(&[(&format!("{key}.png"), &grey(level)), (&format!("{key}.cls"), label.as_bytes())])
    };
    let joined = [entry("a", "0", 9), entry("b", "1", 7)].concat();
    fs::write(root.join("train-0.tar"), joined).unwrap();
    let error = open(root).unwrap_err().to_string();
    assert!(error.contains("holds another tar file behind its end mark"), "{error}");
    // Other bytes there are none of its business, and a name is no mark of bzip2.
    let named = shard(&[("BZhou/a.png", &grey(9)), ("BZhou/a.cls", b"0")]);
    fs::write(root.join("train-0.tar"), [named, vec![7; 512]].concat()).unwrap();
    assert_eq!(levels(&open(root).unwrap().train), [(9, 0)]);
    fs::write(root.join("train-1.tar"), [0x1f, 0x8b, 8, 0, 0]).unwrap();
    let error = open(root).unwrap_err().to_string();
    assert!(error.contains("train-1.tar") && error.contains("is compressed"), "{error}");
    let webp = b"RIFF\x24\0\0\0WEBPVP8 ";
    fs::write(root.join("train-1.tar"), shard(&[("c.webp", webp), ("c.cls", b"1")])).unwrap();
    let error = open(root).unwrap_err().to_string();
    assert!(error.contains("c.webp") && error.contains("JPEG or PNG"), "{error}");
}
