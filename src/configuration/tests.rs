//! The table of keys against what serde accepts.

use super::keys::{keys, table};
use super::{description, explained, page, rounded};
use crate::run_folder::{DataConfig, RunConfig};
use ofa_supernet::SearchSpace;
use ofa_supernet::train::TrainConfig;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// A configuration with every table that there is.
fn with_all_tables() -> Table {
    let space = Table::try_from(SearchSpace::named("tiny").unwrap()).unwrap();
    let mut all: Table = toml::from_str(
        r#"
        [data]
        normalisation = { mean = [0.5, 0.5, 0.5], std = [0.2, 0.2, 0.2] }
        [train]
        schedule = { learning_rate = 0.1 }
        muon = { momentum = 0.6 }
        adamw = { epsilon = 1e-8 }
        probe = { batch = 1 }
        augmentation.crop = { padded = { pixels = 4 } }
        augmentation.mix = { method = "mixup", beta = 1.0 }
        augmentation.rand_augment = { operations = 2, magnitude = 3 }
        augmentation.random_erasing = { probability = 0.5, area = [0.1, 0.2] }
        [[train.stages]]
        name = "a"
        epochs = 1.0
        taught = { labels = 1.0 }
        images = { resolutions = [16] }
        augmentation.crop = { resized = { min_area = 0.1 } }
        augmentation.mix = { method = "mixup", beta = 1.0 }
        augmentation.rand_augment = { operations = 2, magnitude = 3 }
        augmentation.random_erasing = { probability = 0.5, area = [0.1, 0.2] }
        "#,
    )
    .unwrap();
    all.insert("space".into(), Value::Table(space));
    all
}

/// Paths of all tables below `table`; the first of an array stands for all.
fn tables(table: &Table, path: &str, found: &mut Vec<String>) {
    found.push(path.to_string());
    for (name, value) in table {
        let inner = match value {
            Value::Table(inner) => Some(inner),
            Value::Array(values) => values.first().and_then(Value::as_table),
            _ => None,
        };
        if let Some(inner) = inner {
            tables(inner, &joined(path, name), found);
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn at<'a>(table: &'a mut Table, path: &str) -> &'a mut Table {
    path.split('.').filter(|name| !name.is_empty()).fold(table, |table, name| match table.get_mut(name).unwrap() {
        Value::Table(inner) => inner,
        Value::Array(values) => values[0].as_table_mut().unwrap(),
        other => panic!("{name} is {other}"),
    })
}

/// The keys that serde accepts in the table at `path`, from its answer to an unknown one.
fn accepted(path: &str) -> BTreeSet<String> {
    let mut table = with_all_tables();
    at(&mut table, path).insert("unheard_of".into(), 1.into());
    let error = table.try_into::<RunConfig>().unwrap_err();
    let message = error.message();
    assert!(message.contains("unknown field `unheard_of`"), "{path}: {message}");
    let expected = message.split_once("expected ").unwrap().1;
    expected.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// Tables whose only key is one of several words: not tables of keys.
fn is_choice(path: &str) -> bool {
    path.ends_with(".crop")
}

#[test]
fn every_key_that_is_accepted_is_described_and_the_other_way_round() {
    with_all_tables().try_into::<RunConfig>().unwrap();
    let mut all = Vec::new();
    tables(&with_all_tables(), "", &mut all);
    let mut known: BTreeSet<String> = BTreeSet::from(["train.class_balance.weights".to_string()]);
    for path in all.iter().filter(|path| !is_choice(path)) {
        for name in accepted(path) {
            let key = joined(path, &name);
            let is_table = all.contains(&key) && !is_choice(&key);
            assert!(is_table || description(&key).is_some(), "{key} is accepted, but not described");
            let key = key.replace("train.stages.augmentation.", "train.augmentation.");
            assert!(!is_table || table(&key).is_some(), "[{key}] is not described");
            known.insert(key);
        }
    }
    for key in keys() {
        assert!(known.contains(key.path), "{} is described, but not accepted", key.path);
    }
    let mut paths: Vec<&str> = keys().map(|key| key.path).collect();
    paths.sort_unstable();
    assert!(paths.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(keys().all(|key| !key.what.is_empty() && !key.unit.is_empty() && !key.change.is_empty()));
    let mut weights = with_all_tables();
    at(&mut weights, "train")
        .insert("class_balance".into(), toml::from_str::<Table>("weights = [1.0]").unwrap().into());
    weights.try_into::<RunConfig>().unwrap();
}

#[test]
fn the_page_of_keys_is_up_to_date() {
    let written = include_str!("../../docs/configuration.md");
    assert!(page() == written, "write it anew: ofa config --keys > docs/configuration.md");
}

#[test]
fn keys_without_a_default_are_those_that_are_needed() {
    let mut all = Vec::new();
    tables(&with_all_tables(), "", &mut all);
    for key in keys().filter(|key| key.default.is_empty() && key.path != "train.class_balance.weights") {
        let (path, name) = key.path.rsplit_once('.').unwrap();
        // The table of all stages has one crop, that of a stage the other.
        let path = if all.iter().any(|table| table == path) {
            path.to_string()
        } else {
            path.replacen("train.", "train.stages.", 1)
        };
        let mut table = with_all_tables();
        assert!(at(&mut table, &path).remove(name).is_some(), "{}", key.path);
        let error = table.try_into::<RunConfig>().unwrap_err();
        assert!(error.message().contains("missing field"), "{}: {error}", key.path);
    }
}

#[test]
fn figures_have_the_digits_that_say_something() {
    for (number, shown) in [
        (0.1 + 0.2, "0.3"),
        (24.0 / 7.0, "3.42857143"),
        (f64::from(0.4f32), "0.4"),
        (3e-5, "0.00003"),
        (0.5, "0.5"),
        (0.0, "0"),
        (180.0, "180"),
    ] {
        assert_eq!(rounded(number).to_string(), shown);
    }
    assert!(rounded(f64::NAN).is_nan() && rounded(f64::INFINITY).is_infinite());
}

#[test]
fn comments_of_the_input_stay_with_their_keys() {
    let space = SearchSpace::named("tiny").unwrap();
    let train = TrainConfig::preset("tiny", &space).unwrap();
    let mut config = RunConfig { from: None, data: DataConfig::default(), space, train };
    let first = explained(&config, None).unwrap();
    assert_eq!(explained(&config, Some(&first)).unwrap(), first);
    let edited = first
        .replacen("\nmomentum = ", "\n# my reason\nmomentum = ", 1)
        .replacen("seed = 0\n", "seed = 0 # lucky\n", 1)
        .replacen("resolutions = [16, 24, 32]", "resolutions = [\n    16, # small\n    24,\n    32,\n]", 1)
        .replacen("[[train.stages]]", "# about stages\n[[train.stages]] # first", 1)
        + "# the end\n";
    config.data.validation = Some(7);
    let second = explained(&config, Some(&edited)).unwrap();
    for kept in [
        "# my reason\nmomentum = ",
        "seed = 0 # lucky\n",
        "16, # small\n",
        "# about stages\n",
        "[[train.stages]] # first\n",
        "# the end",
    ] {
        assert_eq!(second.matches(kept).count(), 1, "{kept}: {second}");
    }
    // Tables in braces, a default that is not written otherwise, and a key that is taken away.
    let braces = first.replacen("[train.probe]", "[unread]", 1);
    let table = toml::from_str::<Table>(&first).unwrap()["train"]["probe"].as_table().unwrap().to_string();
    let (start, rest) = braces.split_once("[unread]").unwrap();
    let rest = &rest[rest.find("\n[").unwrap()..];
    let probe = table.trim().replace('\n', ", ");
    let start = start.replacen(
        "[train]\n",
        &format!("[train]\n# rarely\nprobe = {{ {probe} }}\nsync_batch_norm = false # no\n"),
        1,
    );
    let third = explained(&config, Some(&format!("{start}{rest}"))).unwrap();
    assert!(third.contains("# rarely\n[train.probe]") && third.contains("sync_batch_norm = false # no\n"), "{third}");
    let fourth = explained(&config, Some(&first.replacen("[train]\n", "[train]\nema = 0.9 # gone\n", 1))).unwrap();
    assert!(fourth.ends_with("# gone\n") && !fourth.contains("ema = 0.9"), "{fourth}");
    // A key that is there needs no line that shows it.
    assert!(second.contains("\nvalidation = 7\n") && !second.contains("# validation = 2000"), "{second}");
    assert_eq!(toml::from_str::<RunConfig>(&second).unwrap().data, config.data);
    assert_eq!(explained(&config, Some(&second)).unwrap(), second);
}
