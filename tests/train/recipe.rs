//! What a training can be made of, through the binary.

use crate::common::{self, changed, fails, metrics, succeeds, weights};
use std::fs;
use std::path::Path;

/// A run with all that a step can be made of, on generated images: one schedule, mixed images, drawn classes.
fn rich_configuration(folder: &Path) {
    let preset = ["config", "--preset", "cifar", "--space", "tiny", "--epochs", "2"];
    let text = succeeds(folder, &[&preset[..], &["--batch", "16", "--validation", "20"]].concat());
    let text = changed(&text, "builtin_train = 6000", "builtin_train = 120");
    let text = changed(&text, "builtin_test = 1000", "builtin_test = 20");
    let text = changed(&text, "recalibration_images = 1000", "recalibration_images = 32");
    let text = changed(&text, "keep_checkpoints = 3", "keep_checkpoints = 99\ncheckpoint_steps = 1");
    let text = changed(&text, "log_every = 20", "log_every = 1\nclass_balance = \"sampling\"");
    let mix = "cutout = 0.25\nmix = { method = \"ricap\", beta = 0.3, probability = 0.7 }";
    fs::write(folder.join("rich.toml"), changed(&text, "cutout = 0.25", mix)).unwrap();
}

#[test]
fn a_run_with_one_schedule_mixed_images_and_drawn_classes_resumes_to_the_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rich_configuration(folder);
    let summary = common::ofa(folder, &["train", "--config", "rich.toml", "--out", "whole"]);
    let said = String::from_utf8_lossy(&summary.stderr).into_owned();
    assert!(summary.status.success(), "{said}");
    for part in ["space 'tiny': smallest subnet 0.", "M MACs", "at 16 px, largest", "2 epochs: largest-small 0.8"] {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    resumes_to_the_bit(folder, "whole", &[1, 5, 6, 9, 11]);
}

/// Checks that a finished run with a checkpoint per step ends in the same bits and lines after a stop at each of `at`.
fn resumes_to_the_bit(folder: &Path, run: &str, at: &[usize]) {
    let (whole, lines) = (weights(&folder.join(run)), metrics(&folder.join(run)));
    let steps = lines.iter().filter(|line| line["type"] == "step").count();
    for step in at {
        let again = folder.join(format!("{run}-from-{step}"));
        common::Snapshot::of(&folder.join(run)).write_to(&again);
        fs::remove_file(again.join("checkpoints/supernet.safetensors")).unwrap();
        for later in step + 1..=steps {
            fs::remove_file(again.join(format!("checkpoints/step-{later:08}.safetensors"))).unwrap();
        }
        succeeds(folder, &["train", "--out", again.to_str().unwrap(), "--resume"]);
        assert!(weights(&again) == whole, "{run} resumed at step {step}");
        assert_eq!(metrics(&again), lines);
    }
}

/// Writes `name` with `lines` added to the table `[train]` of the configuration of [`rich_configuration`].
fn with_lines(folder: &Path, name: &str, lines: &str) {
    let text = fs::read_to_string(folder.join("rich.toml")).unwrap();
    fs::write(folder.join(name), changed(&text, "\nmomentum = ", &format!("\n{lines}\nmomentum = "))).unwrap();
}

#[test]
fn other_optimizers_train_resume_to_the_bit_and_are_not_exchanged_on_resuming() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rich_configuration(folder);
    succeeds(folder, &["train", "--config", "rich.toml", "--out", "sgd"]);
    let muon = "optimizer = \"muon\"\nmuon = { rate_factor = 0.5, momentum = 0.7 }";
    let adamw = "optimizer = \"adamw\"\nadamw = { betas = [0.8, 0.99] }";
    for (name, lines) in [("muon", muon), ("adamw", adamw)] {
        let config = format!("{name}.toml");
        with_lines(folder, &config, lines);
        succeeds(folder, &["train", "--config", &config, "--out", name]);
        assert!(weights(&folder.join(name)) != weights(&folder.join("sgd")), "{name}");
        // Both sides of the border between stages.
        resumes_to_the_bit(folder, name, &[1, 5, 11]);
        let config = fs::read_to_string(folder.join(name).join("config.toml")).unwrap();
        let key = format!("optimizer = \"{name}\"");
        assert!(config.contains(&key), "{config}");
        let tables = config.find(&format!("\n[train.{name}]")).unwrap();
        let end = tables + 1 + config[tables + 1..].find("\n[").unwrap();
        let without = format!("{}{}", &config[..tables], &config[end..]);
        fs::write(folder.join(name).join("config.toml"), changed(&without, &key, "")).unwrap();
        fails(folder, &["train", "--out", name, "--resume"], &["differs in", "optimizer", name]);
    }
    with_lines(folder, "wrong.toml", "muon = { momentum = 0.7 }");
    fails(folder, &["train", "--config", "wrong.toml", "--out", "r"], &["[train.muon]", "optimizer = \"muon\""]);
    with_lines(folder, "wrong.toml", "optimizer = \"lion\"");
    fails(folder, &["train", "--config", "wrong.toml", "--out", "r"], &["lion", "adamw"]);
}

/// The filters of the first convolution `[out][colour, row, column]`.
fn stem_filters(run: &Path) -> Vec<Vec<f32>> {
    let weights = &super::tensors(run)["stem.weight"];
    weights.chunks(27).map(<[f32]>::to_vec).collect()
}

#[test]
fn a_whitening_stem_starts_from_the_images_and_resumes_to_the_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rich_configuration(folder);
    let whitening = "whitening_stem = true";
    with_lines(folder, "narrow.toml", whitening);
    fails(folder, &["train", "--config", "narrow.toml", "--out", "r"], &["whitening_stem needs 16 channels", "has 8"]);
    let text = fs::read_to_string(folder.join("rich.toml")).unwrap();
    let (space, rest) = text.split_once("\n[space.stem]\n").unwrap();
    let wide = format!("{space}\n[space.stem]\n{}", rest.replacen("channels = 8", "channels = 16", 1));
    // At this rate nothing moves that can be seen.
    let slow = wide.replace("learning_rate = 0.1", "learning_rate = 1e-9");
    for (name, text) in [("rich.toml", &wide), ("slow.toml", &slow)] {
        fs::write(folder.join(name), text).unwrap();
    }
    with_lines(folder, "white.toml", whitening);
    fs::write(folder.join("rich.toml"), &slow).unwrap();
    with_lines(folder, "slow-white.toml", whitening);
    for name in ["white", "slow", "slow-white"] {
        succeeds(folder, &["train", "--config", &format!("{name}.toml"), "--out", name]);
    }
    let pairs = |run: &str| {
        let filters = stem_filters(&folder.join(run));
        assert_eq!(filters.len(), 16);
        filters.chunks(2).filter(|pair| pair[0].iter().zip(&pair[1]).all(|(a, b)| (a + b).abs() < 1e-3)).count()
    };
    assert_eq!((pairs("slow-white"), pairs("slow")), (8, 0));
    resumes_to_the_bit(folder, "white", &[0, 1, 6]);
    let white = fs::read_to_string(folder.join("white.toml")).unwrap();
    fs::write(folder.join("white.toml"), changed(&white, "zero_last_scale = true", "zero_last_scale = false")).unwrap();
    let from = ["train", "--config", "white.toml", "--from", "slow", "--out", "r"];
    fails(folder, &from, &["whitening_stem", "from = ", "slow"]);
}

#[test]
fn random_operations_and_erasing_change_the_images_and_resume_to_the_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rich_configuration(folder);
    succeeds(folder, &["train", "--config", "rich.toml", "--out", "plain"]);
    let text = fs::read_to_string(folder.join("rich.toml")).unwrap();
    let operations = "rand_augment = { operations = 2, magnitude = 3.0 }";
    let erasing = "random_erasing = { probability = 0.5, area = [0.05, 0.2] }";
    for (name, lines) in [("operations", operations), ("erasing", erasing)] {
        let config = format!("{name}.toml");
        fs::write(folder.join(&config), changed(&text, "cutout = 0.25", lines)).unwrap();
        succeeds(folder, &["train", "--config", &config, "--out", name]);
        assert!(weights(&folder.join(name)) != weights(&folder.join("plain")), "{name}");
        resumes_to_the_bit(folder, name, &[1, 6, 11]);
    }
    fs::write(folder.join("both.toml"), changed(&text, "cutout = 0.25", &format!("cutout = 0.25\n{erasing}"))).unwrap();
    fails(folder, &["train", "--config", "both.toml", "--out", "r"], &["cutout and random_erasing", "leave one out"]);
    let wrong = changed(&text, "cutout = 0.25", &operations.replace("3.0", "30.0"));
    fs::write(folder.join("wrong.toml"), wrong).unwrap();
    fails(folder, &["train", "--config", "wrong.toml", "--out", "r"], &["rand_augment magnitude is 30", "10"]);
}

#[test]
fn images_that_skip_blocks_change_the_training_and_resume_to_the_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rich_configuration(folder);
    with_lines(folder, "drop.toml", "drop_path = 0.3");
    for name in ["rich", "drop"] {
        succeeds(folder, &["train", "--config", &format!("{name}.toml"), "--out", name]);
    }
    assert!(weights(&folder.join("rich")) != weights(&folder.join("drop")));
    resumes_to_the_bit(folder, "drop", &[1, 6, 11]);
    // A run is the same however many subnets of a step are computed at one time.
    let text = fs::read_to_string(folder.join("drop.toml")).unwrap();
    fs::write(folder.join("one.toml"), changed(&text, "subnets_at_once = 2", "subnets_at_once = 1")).unwrap();
    succeeds(folder, &["train", "--config", "one.toml", "--out", "one"]);
    let [two, one] = ["drop", "one"].map(|run| super::tensors(&folder.join(run)));
    assert!(two == one);
    with_lines(folder, "wrong.toml", "drop_path = 1.5");
    fails(folder, &["train", "--config", "wrong.toml", "--out", "r"], &["drop_path = 1.5", "below 1"]);
}

#[test]
fn a_training_starts_from_an_extracted_model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    common::small_configuration(folder, "c.toml", "1");
    succeeds(folder, &["train", "--config", "c.toml", "--out", "run"]);
    let subnet = "r24 d1,2 k3|5,3 e2|4,3";
    let extract = ["extract", "--run", "run", "--subnet", subnet, "--name", "model", "--recalibration", "32"];
    succeeds(folder, &extract);
    let (model, dims) = model_tensors(&folder.join("run/models/model"));
    // All dimensions from the start, and channels stay in their order; at this rate nothing moves that can be seen.
    let transfer = ["config", "--preset", "transfer", "--space", "tiny", "--epochs", "1"];
    let text = succeeds(folder, &[&transfer[..], &["--batch", "16", "--validation", "20"]].concat());
    let text = changed(&text, "builtin_train = 6000", "builtin_train = 120");
    let text = changed(&text, "recalibration_images = 1000", "recalibration_images = 32");
    fs::write(folder.join("slow.toml"), changed(&text, "learning_rate = 0.02", "learning_rate = 1e-12")).unwrap();
    for (out, more) in [("all", &[][..]), ("alone", &["--subnet", subnet][..])] {
        let train = ["train", "--config", "slow.toml", "--from", "run/models/model", "--seed", "5", "--out", out];
        succeeds(folder, &[&train[..], more].concat());
        let extract = ["extract", "--run", out, "--subnet", subnet, "--name", "again", "--recalibration", "32"];
        succeeds(folder, &extract);
        let (again, same_dims) = model_tensors(&folder.join(out).join("models/again"));
        assert_eq!(dims, same_dims);
        for (name, values) in model.iter().filter(|(name, _)| !name.contains("running_")) {
            for apart in values.iter().zip(&again[name]).map(|(a, b)| (a - b).abs()) {
                assert!(apart < 1e-5, "{out}: {name} is {apart} apart");
            }
        }
        // What the training needs is in its checkpoints.
        let before = weights(&folder.join(out));
        fs::rename(folder.join("run/models/model"), folder.join("away")).unwrap();
        succeeds(folder, &["train", "--out", out, "--resume"]);
        assert!(weights(&folder.join(out)) == before);
        fs::rename(folder.join("away"), folder.join("run/models/model")).unwrap();
    }
    let shown = succeeds(folder, &["config", "--from", "run/models/model"]);
    assert!(shown.contains("name = \"tiny\"") && shown.contains("from = "), "{shown}");
    // In a file as on the command line, with the normalisation that the weights expect.
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("from.toml"), format!("from = \"run/models/model\"\n{text}")).unwrap();
    let normalisation = |text: &str| text[text.find("[data.normalisation]").unwrap()..].to_string();
    let of_file = succeeds(folder, &["config", "--config", "from.toml"]);
    let of_flag = succeeds(folder, &["config", "--config", "c.toml", "--from", "run/models/model"]);
    assert_eq!(normalisation(&of_file), normalisation(&of_flag));
    // Sorting would take channels from a supernet's trained subnets, so that presets leave it out.
    fs::write(folder.join("sorted.toml"), format!("from = \"run\"\n{text}")).unwrap();
    fails(
        folder,
        &["config", "--config", "sorted.toml"],
        &["sorted.toml", "sorts channels", "supernet of from = 'run'"],
    );
    let preset = succeeds(folder, &["config", "--from", "run", "--preset", "tiny"]);
    assert!(!preset.contains("sort_channels ="), "{preset}");
    // A teacher teaches a subnet alone as the stages say, whether the command line or the file names it.
    let half = changed(&text, "kd_ratio = 1.0", "kd_ratio = 0.5");
    fs::write(folder.join("half.toml"), &half).unwrap();
    fs::write(folder.join("key.toml"), changed(&half, "\nbatch = 16", "\nteacher_from = \"run\"\nbatch = 16")).unwrap();
    let alone = |config: &[&str]| -> toml::Table {
        toml::from_str(&succeeds(folder, &[&["config", "--subnet", "smallest", "--config"], config].concat())).unwrap()
    };
    let of_key = alone(&["key.toml"]);
    assert_eq!(of_key["train"]["stages"][0]["kd_ratio"].as_float(), Some(0.5));
    assert!(of_key["data"]["normalisation"].is_table());
    assert_eq!(alone(&["half.toml", "--teacher", "run"]), of_key);
    let other = ["train", "--space", "cifar-mbv3", "--from", "run/models/model", "--out", "r"];
    fails(folder, &other, &["run/models/model", "'cifar-mbv3'", subnet, "'tiny'"]);
    let alone = ["train", "--config", "c.toml", "--subnet", "smallest", "--from", "run/models/model", "--out", "r"];
    fails(folder, &alone, &["does not hold the model's network"]);
    let teacher = ["train", "--config", "c.toml", "--teacher", "run/models/model", "--out", "r"];
    fails(folder, &teacher, &["run/models/model", "a teacher is a supernet"]);
}

/// The tensors of a model's folder, and their shapes in the order of their names.
fn model_tensors(folder: &Path) -> (std::collections::HashMap<String, Vec<f32>>, Vec<Vec<usize>>) {
    let (_, weights) = ofa_evaluate::model::load_weights(folder).unwrap();
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort_unstable();
    let dims = names.iter().map(|name| weights[*name].0.clone()).collect();
    (weights.into_iter().map(|(name, (_, values))| (name, values)).collect(), dims)
}
