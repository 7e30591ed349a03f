//! `ofa config`, and the messages about unusable configurations: one sentence with the place, what was found and what
//! is expected.

mod common;

use common::{changed, fails, small_configuration, succeeds};
use std::fs;

#[test]
fn the_example_configurations_are_valid_and_their_spaces_are_the_presets() {
    let root = env!("CARGO_MANIFEST_DIR");
    let temporary = tempfile::tempdir().unwrap();
    let space = |arguments: &[&str]| {
        let text = succeeds(temporary.path(), &[&["config"], arguments].concat());
        toml::from_str::<toml::Table>(&text).unwrap()["space"].clone()
    };
    for (example, preset) in [("cifar10.toml", "progressive"), ("cifar10-long.toml", "cifar")] {
        let example = space(&["--config", &format!("{root}/examples/{example}")]);
        assert_eq!(example, space(&["--preset", preset]));
    }
}

#[test]
fn the_example_of_one_schedule_is_the_preset() {
    let root = env!("CARGO_MANIFEST_DIR");
    let temporary = tempfile::tempdir().unwrap();
    let table = |arguments: &[&str]| -> toml::Table {
        let mut table: toml::Table = toml::from_str(&succeeds(temporary.path(), arguments)).unwrap();
        table.remove("data");
        table
    };
    let example = table(&["config", "--config", &format!("{root}/examples/cifar10-one-schedule.toml")]);
    assert_eq!(example, table(&["config", "--preset", "cifar"]));
}

#[test]
fn every_key_and_table_is_explained_once_and_the_text_reads_back() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let text = succeeds(folder, &["config", "--preset", "cifar"]);
    let lines: Vec<&str> = text.lines().collect();
    let mut seen = std::collections::HashSet::new();
    let mut table = "";
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let name = if line.starts_with('[') { line } else { line.split(" = ").next().unwrap() };
        if line.starts_with('[') {
            table = line;
        }
        let first = seen.insert((table, name));
        assert_eq!(n > 0 && lines[n - 1].starts_with('#'), first, "{line}: {text}");
    }
    for table in ["[data]", "[space]", "[train]", "[train.schedule]", "[[train.stages]]", "[train.stages.taught]"] {
        assert!(seen.contains(&(table, table)), "{table}: {text}");
    }
    assert!(lines.iter().all(|line| line.len() <= 120 || line.contains(" = ")), "{text}");
    fs::write(folder.join("c.toml"), &text).unwrap();
    assert_eq!(succeeds(folder, &["config", "--config", "c.toml"]), text);
}

#[test]
fn figures_are_rounded() {
    let temporary = tempfile::tempdir().unwrap();
    for preset in ["cifar", "imagenet", "progressive", "tiny", "transfer"] {
        let text = succeeds(temporary.path(), &["config", "--preset", preset, "--epochs", "7.3"]);
        for number in text.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|number| number.contains('.')) {
            assert!(number.trim_matches(['0', '.']).len() <= 10, "{number}: {text}");
        }
    }
}

#[test]
fn comments_of_a_file_are_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let example = format!("{}/examples/cifar10-one-schedule.toml", env!("CARGO_MANIFEST_DIR"));
    let input = fs::read_to_string(&example).unwrap();
    let out = succeeds(folder, &["config", "--config", &example, "--epochs", "7"]);
    let comments = input.lines().filter_map(|line| line.split_once('#').map(|(_, comment)| comment.trim()));
    let comments: Vec<&str> = comments.filter(|comment| !comment.is_empty()).collect();
    assert!(comments.len() > 3, "{input}");
    for comment in comments {
        assert!(out.contains(comment), "'{comment}' is not in: {out}");
    }
    let epochs: f64 = toml::from_str::<toml::Table>(&out).unwrap()["train"]["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["epochs"].as_float().unwrap())
        .sum();
    assert!((epochs - 7.0).abs() < 1e-6, "{out}");
}

#[test]
fn the_page_of_all_keys_is_what_the_program_prints() {
    let temporary = tempfile::tempdir().unwrap();
    let written = include_str!("../docs/configuration.md");
    assert_eq!(succeeds(temporary.path(), &["config", "--keys"]), written);
}

#[test]
fn a_space_file_replaces_the_preset_space() {
    let temporary = tempfile::tempdir().unwrap();
    let config = succeeds(temporary.path(), &["config", "--preset", "tiny", "--epochs", "1", "--batch", "4"]);
    let mut space = toml::from_str::<toml::Table>(&config).unwrap()["space"].as_table().unwrap().clone();
    space.insert("name".into(), "mine".into());
    fs::write(temporary.path().join("space.toml"), space.to_string()).unwrap();
    let out = succeeds(temporary.path(), &["config", "--preset", "tiny", "--space", "space.toml"]);
    assert!(out.contains("name = \"mine\""), "{out}");
    // A whole configuration will do, and its faults are named by line.
    let whole = changed(&config, "name = \"tiny\"", "name = \"whole\"");
    fs::write(temporary.path().join("whole.toml"), &whole).unwrap();
    let out = succeeds(temporary.path(), &["config", "--preset", "tiny", "--space", "whole.toml"]);
    assert!(out.contains("name = \"whole\""), "{out}");
    let wrong = changed(&whole, "kernel_sizes = [3, 5]", "kernel_sizes = [3, 4]");
    fs::write(temporary.path().join("whole.toml"), wrong).unwrap();
    fails(temporary.path(), &["config", "--preset", "tiny", "--space", "whole.toml"], &["whole.toml", "kernel_sizes"]);
}

#[test]
fn an_absent_validation_split_is_shown_as_a_comment_and_a_number_means_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let text = succeeds(folder, &["config", "--preset", "tiny"]);
    assert!(text.contains("# validation = 2000") && !text.contains("\nvalidation ="), "{text}");
    let text = changed(&text, "# validation = 2000", "validation = 5000");
    fs::write(folder.join("c.toml"), text).unwrap();
    let expected = ["validation split of 5000", "at most 3000", "leave the number out"];
    fails(folder, &["train", "--config", "c.toml", "--out", "run"], &expected);
    assert!(succeeds(folder, &["config", "--config", "c.toml"]).contains("\nvalidation = 5000"));
}

#[test]
fn a_resnet_configuration_has_stages_for_its_outer_channels() {
    let temporary = tempfile::tempdir().unwrap();
    let config =
        succeeds(temporary.path(), &["config", "--preset", "tiny", "--space", "resnet-tiny", "--epochs", "1.5"]);
    for part in ["family = \"resnet_d\"", "name = \"outer-1\"", "sort_outer_channels = 1"] {
        assert!(config.contains(part), "'{part}' is not in: {config}");
    }
}

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
    // Unknown keys and values; the message names the nearest known one.
    fault("\nmomentum =", "\nmomentun =", &["momentun", "did you mean `momentum`?"]);
    fault("skip_bad", "skipbad", &["bad.toml:", "did you mean `skip_bad`?"]);
    fault("kernel_sizes = ", "kernelsizes = ", &["did you mean `kernel_sizes`?"]);
    fault("sampling = \"uniform\"", "sampling = \"sandwhich\"", &["did you mean `sandwich`?"]);
    // Wrong types, missing keys, not TOML.
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
    let many =
        format!("expand_ratios = [{}", (1..=129).map(|n| format!("{:?}, ", 0.5 * f64::from(n))).collect::<String>());
    fault("expand_ratios = [", &many, &["expand_ratios holds", "at most 128"]);
    let levels = "\n[data.normalisation]\nmean = [123.7, 116.3, 103.5]\nstd = [58.4, 57.1, 57.4]\n\n[space]";
    fault("\n[space]", levels, &["mean = [123.7", "divide levels of 0 to 255 by 255"]);
    // Contradictions.
    fault("learning_rate = 0.1", "taught = { labels = 0.0 }\nlearning_rate = 0.1", &["largest", "taught", "kd_ratio"]);
    fault("\nmomentum = 0.9", "\nmomentum = 0.9\nschedule = { learning_rate = 0.1 }", &["[train.schedule] spans"]);
    fault("learning_rate = 0.1", "# learning_rate = 0.1", &["learning_rate is missing", "[train.schedule]"]);
    fault("learning_rate = 0.1", "subnet = \"r99 d1\"\nlearning_rate = 0.1", &["r99 d1", "words"]);
    fault("\nbatch = 16", "\nclass_balance = \"los\"\nbatch = 16", &["did you mean `loss`?"]);
    fault("\nbatch = 16", "\nundecayed = [\"depthwse\"]\nbatch = 16", &["did you mean `depthwise`?"]);
    fault("flip = true", "flip = \"always\"", &["true, false or \"alternating\""]);
    fault("flip = true", "flip = true\ncutout = 1.5", &["cutout is 1.5"]);
    fault("flip = true", "flip = true\nmix = { method = \"ricap\", beta = 0.0 }", &["mix beta is 0"]);
    fault("teacher = \"frozen\"", "teacher = \"in_place\"", &["in_place", "sandwich"]);
    let stage = |text: &str| {
        text[text.find("subnets_per_step = 1").unwrap()..text.find("teacher = \"fro").unwrap()].to_string()
    };
    let idle = stage(&good).replace("step = 1", "step = 3").replace("uniform", "sandwich");
    let (old, idle) = (stage(&good) + "teacher = \"frozen", idle + "teacher = \"in_place");
    fault(&old, &idle, &["in_place", "while kd_ratio is 0"]);
    fault("kd_ratio = 0.0", "kd_ratio = 1.0", &["first stage", "kd_ratio must be 0"]);
    fault("name = \"largest\"", "name = \"largest\"\nsort_channels = 2", &["sort_channels"]);
}
