//! Ranges as users write them.

use super::*;
use ofa_supernet::SearchSpace;

const TEXT: &str = "[learning_rate]\nlow = 0.01\nhigh = 1.0\nlog = true\nsteps = 3\n[batch]\nvalues = [8, 16]\n\
                    [label_smoothing]\nlow = 0.0\nhigh = 0.2\nsteps = 2\n";

fn of(text: &str) -> Ranges {
    Ranges::of_text(text)
}

#[test]
fn hyperparameters_without_effect_are_refused() {
    let space = SearchSpace::named("tiny").unwrap();
    let config = TrainConfig::preset("progressive", &space).unwrap();
    let ranges = of("[momentum]\nvalues = [0.1, 0.9]\n[label_smoothing]\nvalues = [0.0, 0.1]\n");
    assert_eq!(ranges.idle(&config), None);
    let adamw = TrainConfig { optimizer: OptimizerKind::AdamW, ..config.clone() };
    assert_eq!(ranges.idle(&adamw).unwrap().0, Hyperparameter::Momentum);
    let mut own = config.clone();
    own.stages.iter_mut().for_each(|stage| stage.label_smoothing = Some(0.1));
    assert_eq!(ranges.idle(&own), Some((Hyperparameter::LabelSmoothing, "every stage has its own")));
}

#[test]
fn the_largest_batch_of_all_trials_is_known() {
    let space = SearchSpace::named("tiny").unwrap();
    let mut config = TrainConfig { batch: 12, ..TrainConfig::preset("progressive", &space).unwrap() };
    assert!(!of("[momentum]\nvalues = [0.1, 0.9]\n").apply_largest_batch(&mut config));
    assert_eq!(config.batch, 12);
    for text in ["[batch]\nvalues = [8, 64]\n", "[batch]\nlow = 8\nhigh = 64\n"] {
        assert!(of(text).apply_largest_batch(&mut config));
        assert_eq!(config.batch, 64);
    }
}

#[test]
fn units_and_values_are_two_sides_of_one_thing() {
    let ranges = of(TEXT);
    assert_eq!(
        ranges.names().map(|n| n.to_string()).collect::<Vec<_>>(),
        ["learning_rate", "batch", "label_smoothing"]
    );
    let values = ranges.values(&[0.5, 0.9, 0.25]);
    let get = |name| values[&name];
    assert!((get(Hyperparameter::LearningRate) - 0.1).abs() < 1e-12, "the middle of a logarithmic range");
    assert_eq!((get(Hyperparameter::Batch), get(Hyperparameter::LabelSmoothing)), (16.0, 0.05));
    let units = ranges.units(&values);
    assert!((units[0] - 0.5).abs() < 1e-12 && units[1] == 0.75 && (units[2] - 0.25).abs() < 1e-12);
    assert_eq!(ranges.values(&units), values);
    let grid: Vec<Vec<f64>> = ranges.grid().collect();
    assert_eq!(grid.len(), 3 * 2 * 2);
    assert_eq!((&grid[0][..], &grid[11][..]), (&[0.0, 0.25, 0.0][..], &[1.0, 0.75, 1.0][..]));
}

#[test]
fn whole_numbers_are_drawn_alike_often_and_have_a_unit_each() {
    for (text, last) in [("[batch]\nlow = 8\nhigh = 10\n", 10), ("[batch]\nlow = 3\nhigh = 70\nlog = true\n", 70)] {
        let ranges = of(text);
        let value = |unit: f64| ranges.values(&[unit])[&Hyperparameter::Batch];
        assert_eq!((value(0.0), value(1.0)), (value(1e-9), f64::from(last)));
        for number in value(0.0) as u32..=last {
            let values = Values::from([(Hyperparameter::Batch, f64::from(number))]);
            assert_eq!(ranges.values(&ranges.units(&values)), values, "{text}");
        }
    }
    let ranges = of("[batch]\nlow = 8\nhigh = 10\n");
    let drawn = (0..300).map(|draw| ranges.values(&[(f64::from(draw) + 0.5) / 300.0])[&Hyperparameter::Batch]);
    assert_eq!(drawn.filter(|&value| value == 8.0).count(), 100);
}

#[test]
fn values_reach_the_configuration() {
    let space = SearchSpace::named("tiny").unwrap();
    let mut config = TrainConfig::preset("tiny", &space).unwrap();
    let rates: Vec<f64> = config.stages.iter().filter_map(|stage| stage.learning_rate).collect();
    let ranges = of(TEXT);
    ranges.apply(&ranges.values(&[1.0, 0.0, 1.0]), &mut config);
    assert_eq!((config.batch, config.label_smoothing), (8, 0.2));
    for (stage, rate) in config.stages.iter().zip(&rates) {
        assert!((stage.learning_rate.unwrap() - rate / rates[0]).abs() < 1e-9, "{}", stage.name);
    }
    let about = Ranges::about(&config, &space).unwrap();
    assert_eq!(about.values(&[0.5, 0.5, 0.5])[&Hyperparameter::Batch], 8.0);
}

#[test]
fn ends_are_those_of_the_file() {
    let ranges =
        of("[learning_rate]\nlow = 0.01\nhigh = 0.1\nlog = true\nsteps = 2\n[dropout]\nlow = 0.1\nhigh = 0.7\n");
    for (unit, ends) in [(0.0, [0.01, 0.1]), (1.0, [0.1, 0.7])] {
        let values = ranges.values(&[unit, unit]);
        assert_eq!([values[&Hyperparameter::LearningRate], values[&Hyperparameter::Dropout]], ends);
        assert_eq!(ranges.units(&values), [unit, unit]);
    }
    let space = SearchSpace::named("tiny").unwrap();
    let mut config = TrainConfig::preset("tiny", &space).unwrap();
    ranges.apply(&ranges.values(&[1.0, 1.0]), &mut config);
    assert_eq!(config.stages[0].learning_rate, Some(0.1));
}

#[test]
fn points_are_counted_where_they_have_a_limit() {
    assert_eq!(of("[batch]\nlow = 8\nhigh = 12\n[dropout]\nvalues = [0, 0.5]\n").count(), Some(10));
    assert_eq!(of(TEXT).count(), None);
}

#[test]
fn impossible_ranges_are_one_sentence_with_the_line() {
    let space = SearchSpace::named("tiny").unwrap();
    let config = TrainConfig::preset("tiny", &space).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    for (text, reason) in [
        ("", "r.toml:1: no hyperparameter"),
        (
            "# the colour\n[colour]\nlow = 1\nhigh = 2\n",
            "r.toml:2: unknown hyperparameter 'colour'; known are learning_rate,",
        ),
        ("[batch]\nvalues = []\n", "r.toml:1: [batch] values"),
        ("[batch]\nvalues = [2, 1]\n", "ascending"),
        ("[batch]\nvalues = [8, 8]\n", "ascending"),
        ("\n\n[dropout]\nlow = 0.5\nhigh = 0.1\n", "r.toml:3: [dropout] low = 0.5"),
        ("[dropout]\nlow = 0.0\nhigh = 0.1\nlog = true\n", "above 0"),
        ("[dropout]\nlow = 0.0\nhigh = 0.1\nsteps = 1\n", "steps = 1"),
        ("[dropout]\nlow = 0.0\nhigh = 0.1\n\nsteps = 2.5\n", "r.toml:5: [dropout] steps is not a whole number"),
        ("[dropout]\nlow = 0.0\n", "r.toml:1: [dropout] low without high"),
        ("[dropout]\nhigh = 0.2\n", "high without low"),
        ("[dropout]\n", "no range is given; write low"),
        ("[dropout]\nlow = 0.0\nvalues = [0.1]\n", "r.toml:1: [dropout] values excludes low"),
        ("[dropout]\nvalues = [0.1]\nlog = true\n", "values excludes low, high, log"),
        ("[dropout]\nvalues = 0.1\n", "r.toml:2: [dropout] values is not a list of numbers"),
        ("[dropout]\nvalues = [\"a\"]\n", "values is not a list of numbers"),
        ("[dropout]\nlow = \"0\"\nhigh = 1\n", "r.toml:2: [dropout] low is not a number"),
        ("[dropout]\nlow = 0\nhigh = 0.5\nlog = 1\n", "r.toml:4: [dropout] log is not true or false"),
        ("[dropout]\nlow = 0\nhigh = 0.5\nstep = 1\n", "r.toml:4: [dropout] unknown key 'step'"),
        ("dropout = 0.1\n", "r.toml:1: dropout is not a table"),
        ("[dropout]\nlow = \n", "r.toml:2: not valid TOML"),
        ("[dropout]\nvalues = [0.1]\n[dropout]\nvalues = [0.2]\n", "r.toml:3: not valid TOML: duplicate key"),
        ("[batch]\nvalues = [0]\n", "r.toml:1: [batch] 0 is not a possible batch"),
        ("[batch]\nvalues = [8.5]\n", "8.5 is not a possible batch; expected a whole number"),
        ("[batch]\nlow = 8\nhigh = 16.5\n", "16.5 is not a possible batch"),
        ("[batch]\nvalues = [8, 100000]\n", "batch = 100000 must be at least 1 and at most 65536"),
        ("[batch]\nvalues = [8]\n[momentum]\nlow = 0.5\nhigh = 1.5\n", "r.toml:3: [momentum] momentum = 1.5"),
        ("[learning_rate]\nvalues = [-0.1, 0.1]\n", "learning_rate = -0.1 must be above 0"),
        ("[clip_norm]\nvalues = [0.0, 1.0]\n", "clip_norm = 0"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Ranges::read(&path, &config, &space).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn the_largest_batch_is_that_of_training() {
    let space = SearchSpace::named("tiny").unwrap();
    let mut config = TrainConfig::preset("tiny", &space).unwrap();
    (config.batch, config.weight_decay) = (TrainConfig::LARGEST_BATCH, 0.9);
    Ranges::about(&config, &space).unwrap();
    config.batch += 1;
    assert!(config.validate(&space).is_err());
    config.batch = 1;
    Ranges::about(&config, &space).unwrap();
}
