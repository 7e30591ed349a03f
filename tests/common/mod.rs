//! Runs the binary on small runs.
#![allow(dead_code, reason = "each test file uses its part")]

use ofa_supernet::import::published;
use ofa_supernet::{SearchSpace, Supernet};
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// Arguments of a quickstart that takes two seconds.
pub const QUICKSTART: &[&str] = &["--epochs", "3", "--images", "400", "--samples", "16"];

/// The command, not started yet.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ofa"));
    for name in ["COLUMNS", "CLICOLOR", "CLICOLOR_FORCE", "NO_COLOR", "OFA_PROGRESS_SECONDS"] {
        command.env_remove(name);
    }
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Sends a signal, such as `TERM`, to a process; false if there is none. The shell's own `kill`: small systems have no
/// program of that name.
pub fn signal(name: &str, process: impl std::fmt::Display) -> bool {
    let process = process.to_string();
    Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &process]).status().unwrap().success()
}

pub fn ofa(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Asserts success and returns the standard output.
#[track_caller]
pub fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = ofa(folder, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ofa {arguments:?}\n{out}\n{err}");
    out.into_owned()
}

/// Asserts failure: exit code 1, an error in the last line, and all of `expected` in it or before it. Returns standard
/// error.
#[track_caller]
pub fn fails(folder: &Path, arguments: &[&str], expected: &[&str]) -> String {
    refused(&ofa(folder, arguments), expected)
}

/// [`fails`] for a command that has ended.
#[track_caller]
pub fn refused(output: &Output, expected: &[&str]) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{err}");
    for part in expected {
        assert!(err.contains(part), "'{part}' is not in: {err}");
    }
    err
}

/// Asserts wrong usage: exit code 2 and an error with all of `expected` in its first line.
#[track_caller]
pub fn misused(folder: &Path, arguments: &[&str], expected: &[&str]) {
    let output = ofa(folder, arguments);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
    let first = err.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: "), "{arguments:?}: {err}");
    assert!(expected.iter().all(|part| first.contains(part)), "{arguments:?}: {expected:?} is not in: {err}");
}

/// A configuration of five short stages on 100 generated images, with a line of metrics per step and a checkpoint every
/// three steps.
pub fn small_configuration(folder: &Path, name: &str, epochs: &str) {
    let text =
        succeeds(folder, &["config", "--preset", "tiny", "--epochs", epochs, "--batch", "16", "--validation", "20"]);
    let text = changed(&text, "builtin_train = 6000", "builtin_train = 120");
    let text = changed(&text, "builtin_test = 1000", "builtin_test = 20");
    let text = changed(&text, "log_every = 20", "log_every = 1\ncheckpoint_steps = 3\nema = 0.9");
    fs::write(folder.join(name), text).unwrap();
}

/// A configuration of the preset `tiny` on 400 generated images, 100 of them for validation.
pub fn tuning_configuration(folder: &Path, epochs: &str) {
    let config = succeeds(folder, &["config", "--preset", "tiny", "--epochs", epochs, "--validation", "100"]);
    let config = changed(&config, "builtin_train = 6000", "builtin_train = 400");
    let config = changed(&config, "recalibration_images = 200", "recalibration_images = 32");
    fs::write(folder.join("c.toml"), config).unwrap();
}

/// Writes `count` images of a class, which differ a little, to `folder`.
pub fn write_images(folder: &Path, count: u32, brightness: u8) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let pixel = |x: u32, y: u32| image::Rgb([brightness, (x * 9) as u8, (y * (index + 1)) as u8]);
        image::RgbImage::from_fn(20, 18, pixel).save(folder.join(format!("{index}.png"))).unwrap();
    }
}

/// Writes two classes of images, which a network tells apart after some steps, to the image folder `root`.
pub fn write_two_classes(root: &Path, train: u32, test: u32) {
    for (split, count) in [("train", train), ("test", test)] {
        for (class, brightness) in [("dark", 40), ("light", 200)] {
            write_images(&root.join(split).join(class), count, brightness);
        }
    }
}

/// Writes `count` images of each class to the image folder `root`, as training and as test images.
pub fn write_classes(root: &Path, classes: &[String], count: u32) {
    for split in ["train", "test"] {
        (0..).zip(classes).for_each(|(number, class)| write_images(&root.join(split).join(class), count, 20 * number));
    }
}

/// The files of a folder, by path relative to it.
#[derive(PartialEq)]
pub struct Snapshot(Vec<(PathBuf, Vec<u8>)>);

impl Snapshot {
    pub fn of(root: &Path) -> Snapshot {
        let (mut files, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap()));
                }
            }
        }
        files.sort();
        Snapshot(files)
    }

    pub fn write_to(&self, root: &Path) {
        for (name, bytes) in &self.0 {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn archive(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn of_archive(bytes: &[u8]) -> Snapshot {
        let (mut archive, mut files) = (tar::Archive::new(bytes), Vec::new());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, mut content) = (entry.path().unwrap().into_owned(), Vec::new());
            entry.read_to_end(&mut content).unwrap();
            files.push((name, content));
        }
        Snapshot(files)
    }
}

/// The folder `run` that `make` leaves in the folder it gets, made once per build of the program.
///
/// All test programs share it as one file, which appears and goes as a whole, since tests of another build may run at
/// the same time. Files of other builds are removed: who misses one makes the run again.
fn made_once(name: &str, make: impl FnOnce(&Path)) -> Snapshot {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = fs::metadata(env!("CARGO_BIN_EXE_ofa")).unwrap().modified().unwrap();
    let built = built.duration_since(UNIX_EPOCH).unwrap().as_nanos();
    // What is computed depends on these, too.
    let cores = std::thread::available_parallelism().unwrap();
    let [threads, set] = ["RAYON_NUM_THREADS", "OFA_ISA"].map(|name| std::env::var(name).unwrap_or_default());
    let file = format!("{name}-{built}-{cores}-{threads}{set}.tar");
    if let Ok(bytes) = fs::read(kept.join(&file)) {
        return Snapshot::of_archive(&bytes);
    }
    let temporary = tempfile::tempdir().unwrap();
    make(temporary.path());
    let made = Snapshot::of(&temporary.path().join("run"));
    let others = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().file_name());
    for other in others.filter(|other| other.to_string_lossy().starts_with(&format!("{name}-"))) {
        let _ = fs::remove_file(kept.join(other));
    }
    let mut unfinished = tempfile::NamedTempFile::new_in(kept).unwrap();
    unfinished.write_all(&made.archive()).unwrap();
    unfinished.persist(kept.join(&file)).unwrap();
    made
}

/// Writes a finished quickstart to `folder/run`: a supernet, a predictor of 16 samples, the device profile `this` and
/// models. The run is made once; each test gets a copy of its own.
pub fn finished_run(folder: &Path) {
    static RUN: OnceLock<Snapshot> = OnceLock::new();
    let make = |folder: &Path| drop(succeeds(folder, &[&["quickstart", "--out", "run"], QUICKSTART].concat()));
    RUN.get_or_init(|| made_once("quickstart", make)).write_to(&folder.join("run"));
}

/// Writes a finished run of the family of ResNets to `folder/run`: a supernet, a predictor of 10 samples and the device
/// profile `this`. The run is made once; each test gets a copy of its own.
pub fn finished_resnet_run(folder: &Path) {
    static RUN: OnceLock<Snapshot> = OnceLock::new();
    let make = |folder: &Path| {
        let config = succeeds(folder, &["config", "--preset", "tiny", "--space", "resnet-tiny", "--epochs", "1.5"]);
        let config = changed(&config, "recalibration_images = 200", "recalibration_images = 32");
        fs::write(folder.join("c.toml"), config).unwrap();
        succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
        let sampling = ["predictor", "--run", "run", "--samples", "10", "--recalibration", "20", "--images", "20"];
        let out = succeeds(folder, &sampling);
        assert!(out.contains("10 subnets"), "{out}");
        succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "4"]);
    };
    RUN.get_or_init(|| made_once("resnet", make)).write_to(&folder.join("run"));
}

/// Writes `folder/net.safetensors`: a supernet of the space `tiny` for 10 classes, with the names and shapes of
/// published checkpoints.
pub fn published_supernet(folder: &Path) {
    let net = Supernet::new(&SearchSpace::named("tiny").unwrap(), 10, 3).unwrap();
    let mut tensors = HashMap::new();
    for (name, tensor) in net.state().unwrap() {
        let mut shape = tensor.dims().to_vec();
        if name == "hidden.weight" {
            shape.extend([1, 1]);
        }
        tensors.insert(published(&name, net.space()).unwrap(), tensor.reshape(shape).unwrap());
    }
    candle_core::safetensors::save(&tensors, folder.join("net.safetensors")).unwrap();
}

#[track_caller]
pub fn changed(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "'{old}' is not in: {text}");
    text.replacen(old, new, 1)
}

/// The metrics without values of a clock.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for clock in ["seconds", "images_per_second"] {
                line.as_object_mut().unwrap().remove(clock);
            }
            line
        })
        .collect()
}

pub fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/supernet.safetensors")).unwrap()
}

/// Writes `folder/NAME` in IDX layout: 160 training and 40 test images of four brightnesses, which are the classes, in
/// the order of `sorted` labels or with labels in turn. The images are the same.
pub fn grey_images(folder: &Path, name: &str, sorted: bool) {
    const SIDE: usize = 16;
    let root = folder.join(name);
    fs::create_dir_all(&root).unwrap();
    let mut noise = 1u32;
    let mut draw = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8 / 8
    };
    for (split, count) in [("train", 160), ("t10k", 40)] {
        let mut images: Vec<(u8, Vec<u8>)> = (0..count)
            .map(|index| {
                let label = (index % 4) as u8;
                (label, (0..SIDE * SIDE).map(|_| 30 + 50 * label + draw()).collect())
            })
            .collect();
        if sorted {
            images.sort_by_key(|image| image.0);
        }
        let header = |sizes: &[usize]| {
            let magic = 0x0800 + sizes.len() as u32;
            [magic]
                .into_iter()
                .chain(sizes.iter().map(|&size| size as u32))
                .flat_map(u32::to_be_bytes)
                .collect::<Vec<u8>>()
        };
        let labels = images.iter().map(|image| image.0);
        let bytes: Vec<u8> = header(&[count]).into_iter().chain(labels).collect();
        fs::write(root.join(format!("{split}-labels-idx1-ubyte")), bytes).unwrap();
        let pixels = images.iter().flat_map(|image| image.1.iter().copied());
        let bytes: Vec<u8> = header(&[count, SIDE, SIDE]).into_iter().chain(pixels).collect();
        fs::write(root.join(format!("{split}-images-idx3-ubyte")), bytes).unwrap();
    }
}
