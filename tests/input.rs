//! What the commands say to configurations and files that they cannot use: one sentence with the place, what was found and what
//! is expected.

mod common;

use common::{changed, fails, small_configuration, succeeds};
use std::fs;

#[test]
fn every_fault_of_a_configuration_is_one_sentence() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "good.toml", "8");
    let good = fs::read_to_string(folder.join("good.toml")).unwrap();
    let fault = |old: &str, new: &str, expected: &[&str]| {
        fs::write(folder.join("bad.toml"), changed(&good, old, new)).unwrap();
        let err =
            fails(folder, &["train", "--config", "bad.toml", "--out", "run"], &[&["bad.toml"], expected].concat());
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(!folder.join("run").exists(), "{new}");
    };
    // Unknown keys and values, each with the known name that is nearest.
    fault("\nmomentum =", "\nmomentun =", &["momentun", "did you mean `momentum`?"]);
    fault("skip_bad", "skipbad", &["bad.toml:", "did you mean `skip_bad`?"]);
    fault("kernel_sizes = ", "kernelsizes = ", &["did you mean `kernel_sizes`?"]);
    fault("sampling = \"uniform\"", "sampling = \"sandwhich\"", &["did you mean `sandwich`?"]);
    // Wrong types, missing keys, no TOML.
    fault("\nbatch = 16", "\nbatch = \"many\"", &["bad.toml:", "string", "usize"]);
    fault("\nbatch = 16", "\nbatch = -1", &["bad.toml:", "-1"]);
    fault("seed = 0", "seed = 1.5", &["bad.toml:", "floating point"]);
    fault("family = ", "# family = ", &["missing field `family`"]);
    fault("[train]", "[train", &["bad.toml:"]);
    // Out of range.
    fault("\nmomentum = 0.9", "\nmomentum = 1.5", &["momentum = 1.5", "below 1"]);
    fault("\nmomentum = 0.9", "\nmomentum = nan", &["momentum = NaN"]);
    fault("checkpoint_steps = 3", "checkpoint_steps = 0", &["checkpoint_steps = 0"]);
    fault("width_multiplier = 1.0", "width_multiplier = 1e9", &["width_multiplier"]);
    fault("kernel_sizes = [3, 5]", "kernel_sizes = [3, 4]", &["odd"]);
    fault("resolutions = [", "resolutions = [99999, ", &["resolutions"]);
    // Contradictions.
    fault("teacher = \"frozen\"", "teacher = \"in_place\"", &["in_place", "sandwich"]);
    fault("kd_ratio = 0.0", "kd_ratio = 1.0", &["first stage", "kd_ratio must be 0"]);
    fault("name = \"largest\"", "name = \"largest\"\nsort_channels = 2", &["sort_channels"]);
}

#[test]
fn files_of_a_run_are_not_trusted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "1");
    succeeds(folder, &["train", "--config", "c.toml", "--out", "run"]);
    let damage = |file: &str, bytes: &[u8], arguments: &[&str], expected: &[&str]| {
        let path = folder.join("run").join(file);
        let before = fs::read(&path).ok();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fails(folder, arguments, &[&[file], expected].concat());
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    };
    let search = ["search", "--run", "run", "--limit", "any:macs=1M"];
    let predictor = ["predictor", "--run", "run", "--samples", "12", "--images", "20", "--recalibration", "20"];
    succeeds(folder, &predictor);
    succeeds(folder, &search);
    let supernet = fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let mut flipped = supernet.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    damage("checkpoints/supernet.safetensors", &flipped, &search, &["checksum"]);
    damage("checkpoints/supernet.safetensors", &supernet[..middle], &search, &["safetensors"]);
    damage("checkpoints/supernet.safetensors", b"", &search, &["safetensors"]);
    damage("predictor/predictor.safetensors", &supernet, &search, &["no predictor"]);
    damage("predictor/samples.jsonl", b"{\"subnet\": 3}\n", &predictor, &["samples.jsonl:1", "expected"]);
    damage("devices/phone.json", b"{\"name\": \"phone\"}", &search, &["JSON", "missing field"]);
    damage("devices/phone.json", b"\xff\xfe", &search, &["UTF-8"]);
    damage("config.toml", b"[data]\nsorce = 'x'\n", &search, &["did you mean `source`?"]);
    // Extracting replaces a damaged model.
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"]);
    let config = folder.join("run/models/smallest/config.json");
    fs::write(&config, changed(&fs::read_to_string(&config).unwrap(), "\"labels\"", "\"lables\"")).unwrap();
    fails(folder, &["bench", "run/models/smallest"], &["config.json", "did you mean `labels`?"]);
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"]);
    succeeds(folder, &["bench", "run/models/smallest"]);
}

#[test]
#[cfg(target_os = "linux")]
fn training_that_no_machine_can_hold_is_refused_before_it_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "8");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    let space = table["space"].as_table_mut().unwrap();
    space.insert("width_multiplier".into(), 10.0.into());
    for key in ["feature_channels", "hidden_channels"] {
        space["head"].as_table_mut().unwrap().insert(key.into(), 65_536.into());
    }
    fs::write(folder.join("giant.toml"), table.to_string()).unwrap();
    let err =
        fails(folder, &["train", "--config", "giant.toml", "--out", "run"], &["MiB of this machine", "smaller space"]);
    assert!(err.contains("training with 16 images a step takes about"), "{err}");
    assert!(!folder.join("run/config.toml").exists());
}
