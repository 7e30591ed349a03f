//! `ofa status`, and the files that training writes beside its checkpoints: `metrics.csv` and TensorBoard's events.

mod common;

use common::{command, fails, finished_run, metrics, small_configuration, succeeds};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;

fn status(folder: &Path, run: &str) -> Value {
    serde_json::from_str(&succeeds(folder, &["status", run, "--json"])).unwrap()
}

/// Trains until a line of `metrics.jsonl` names step 4, then asks for a stop.
#[cfg(unix)]
fn interrupted(folder: &Path, more: &[&str]) {
    let arguments = [&["train", "--config", "c.toml", "--out", "run"], more].concat();
    let mut child = command(folder, &arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let path = folder.join("run/metrics.jsonl");
    while !fs::read_to_string(&path).is_ok_and(|text| text.contains("\"step\":4")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let during = status(folder, "run");
    assert_eq!((&during["state"], &during["next"]), (&"training".into(), &Value::Array(Vec::new())), "{during}");
    assert!(during["command"].as_str().unwrap().contains("ofa train --config c.toml"), "{during}");
    assert!(common::signal("TERM", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[cfg(unix)]
#[test]
fn a_run_is_followed_from_its_beginning_to_its_models() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fails(folder, &["status"], &["run/config.toml", "not a run folder", "ofa train"]);
    small_configuration(folder, "c.toml", "40");
    succeeds(folder, &["tune", "--config", "c.toml", "--trials", "1", "--trial-epochs", "0.2", "--out", "tune"]);
    fails(folder, &["status", "tune"], &["tune/trials.jsonl", "trials of `ofa tune`"]);
    interrupted(folder, &[]);
    let stopped = status(folder, "run");
    let training = &stopped["training"];
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["next"][0], "ofa train --out run --resume");
    let number = |key: &str| training[key].as_f64().unwrap();
    assert!(number("step") >= 4.0 && number("step") < number("steps") && number("seconds_left") > 0.0, "{stopped}");
    assert!(number("stage_number") >= 1.0 && number("stages") == 5.0, "{stopped}");
    assert_eq!(stopped["checkpoints"].as_array().unwrap().last(), Some(&training["step"]));
    let text = succeeds(folder, &["status", "run"]);
    for part in
        ["stopped", "stage       ", " of 5, '", "step        ", "time left   about", "Next: ofa train --out run"]
    {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    assert_eq!(succeeds(folder, &["status"]), text);

    // More epochs of a stage that is over resume nothing; a finished run that got a further stage is not at its end.
    let extended = folder.join("extended");
    finished_run(&extended);
    let trained = status(&extended, "run");
    let config = fs::read_to_string(extended.join("run/config.toml")).unwrap();
    let (before, last) = config.rsplit_once("\nepochs = ").unwrap();
    let (epochs, after) = last.split_once('\n').unwrap();
    let epochs = epochs.parse::<f64>().unwrap() + 1.0;
    fs::write(extended.join("run/config.toml"), format!("{before}\nepochs = {epochs:?}\n{after}")).unwrap();
    let longer = status(&extended, "run");
    assert_eq!((&longer["state"], &longer["training"]["step"]), (&"trained".into(), &trained["training"]["step"]));
    let more = "\n[[train.stages]]\nname = \"more\"\nepochs = 1.0\nlearning_rate = 0.01\n";
    fs::write(extended.join("run/config.toml"), config.clone() + more).unwrap();
    let unfinished = status(&extended, "run");
    assert_eq!(unfinished["state"], "stopped");
    assert_eq!(unfinished["next"], serde_json::json!(["ofa train --out run --resume"]));
    let number = |key: &str| unfinished["training"][key].as_f64().unwrap();
    assert!(number("step") > 0.0 && number("step") < number("steps"), "{unfinished}");

    finished_run(&folder.join("other"));
    let finished = status(folder, "other/run");
    assert_eq!(finished["state"], "trained");
    assert_eq!(finished["predictor"]["samples"], 16);
    assert_eq!(finished["devices"], serde_json::json!(["this"]));
    let names: Vec<&str> = finished["models"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names[1]), (5, "largest", "smallest"));
    assert_eq!(finished["searches"].as_array().unwrap().len(), 3);
    assert_eq!(finished["training"]["validation"].as_array().unwrap().len(), 3);
    assert_eq!(finished["next"], serde_json::json!(["ofa report --run other/run"]));
    // A damaged checkpoint is one that training would skip.
    let checkpoints = ofa_supernet::files::list_folder(&extended.join("run/checkpoints")).unwrap();
    let steps = checkpoints.iter().filter(|path| path.to_str().unwrap().contains("step-"));
    fs::write(steps.max().unwrap(), "x").unwrap();
    assert_eq!(status(&extended, "run")["next"], serde_json::json!(["ofa train --out run --resume"]));
    // A published predictor has no report.
    let fit = folder.join("other/run/predictor/fit.json");
    let report = fs::read(&fit).unwrap();
    fs::remove_file(&fit).unwrap();
    let out = common::succeeds(folder, &["status", "other/run"]);
    assert!(out.contains("predictor   there, its quality is not known"), "{out}");
    assert_eq!(status(folder, "other/run")["has_predictor"], true);
    fs::write(&fit, report).unwrap();
    // Limits of int8 models are for such models.
    common::succeeds(folder, &["search", "--run", "other/run", "--limit", "any:size-int8=100KB", "--generations", "3"]);
    let next = status(folder, "other/run")["next"].clone();
    let int8 = "ofa extract --run other/run --search-results any-size-int8-100KB --int8";
    assert_eq!(next[0], int8);
    assert_eq!(finished["warnings"], serde_json::json!([]));
    // A model of the result that a later one replaced is not its extraction.
    let found = folder.join(format!("other/run/search/{}.json", names[2]));
    let result = fs::read(&found).unwrap();
    let mut later: Value = serde_json::from_slice(&result).unwrap();
    let ends = ["r16 d1,1 k3|3 e2|2", "r32 d2,2 k5,5|5,5 e4,4|4,4"];
    later["best"] = ends.into_iter().find(|end| later["best"] != *end).unwrap().into();
    fs::write(&found, later.to_string()).unwrap();
    let next = status(folder, "other/run")["next"].clone();
    let replaced = format!("ofa extract --run other/run --search-results {} --overwrite", names[2]);
    assert_eq!((&next[0], &next[1]), (&replaced.into(), &int8.into()));
    // Whether to replace a model with fine-tuned integers is its owner's choice, and so is one of another origin.
    let model = folder.join(format!("other/run/models/{}/config.json", names[2]));
    let config = fs::read_to_string(&model).unwrap();
    fs::write(&model, config.replace(&format!("\"search\": \"{}\"", names[2]), "\"search\": null")).unwrap();
    assert_ne!(fs::read_to_string(&model).unwrap(), config);
    assert_eq!(status(folder, "other/run")["next"][0], int8);
    fs::write(&model, config).unwrap();
    fs::write(&found, result).unwrap();
    fs::remove_file(folder.join("other/run/search/any-size-int8-100KB.json")).unwrap();
    for (removed, next) in [
        ("models/smallest/bench.json", "ofa bench other/run/models/* --data builtin --update-card"),
        ("models", "ofa extract --run other/run --search-results"),
        ("search", "ofa search --run other/run --limit this:latency=10ms"),
        ("predictor", "ofa predictor --run other/run"),
        ("devices", "ofa profile --run other/run --name this"),
    ] {
        let path = folder.join("other/run").join(removed);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        assert_eq!(status(folder, "other/run")["next"][0], next);
    }
}

/// Rows of `metrics.csv` as lines of `metrics.jsonl`, without values of a clock.
fn rows(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let mut lines = text.lines().map(ofa_supernet::files::csv_fields);
    let header = lines.next().unwrap();
    let value = |text: &str| text.parse::<f64>().map_or_else(|_| Value::from(text), Value::from);
    let row = |fields: Vec<String>| {
        let filled = header
            .iter()
            .zip(&fields)
            .filter(|(name, field)| !field.is_empty() && !["seconds", "images_per_second"].contains(&name.as_str()));
        filled.map(|(name, field)| (name.clone(), value(field))).collect()
    };
    lines.map(row).collect()
}

/// Lines of `metrics.jsonl` with all numbers as floats.
fn lines(run: &Path) -> Vec<Value> {
    let float = |value: Value| value.as_f64().map_or(value, Value::from);
    let line = |line: Value| line.as_object().unwrap().clone().into_iter().map(|(key, v)| (key, float(v))).collect();
    metrics(run).into_iter().map(line).collect()
}

#[cfg(unix)]
#[test]
fn the_table_of_metrics_is_the_lines_of_metrics_after_resuming_too() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "120");
    interrupted(folder, &[]);
    let run = folder.join("run");
    assert_eq!(rows(&run), lines(&run));
    // What a kill leaves after the last checkpoint goes, and a table that was lost comes back.
    let whole = fs::read_to_string(run.join("metrics.csv")).unwrap();
    fs::write(run.join("metrics.csv"), format!("{whole}step,999,cut")).unwrap();
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(rows(&run).len() > whole.lines().count());
    assert_eq!(rows(&run), lines(&run));
    assert!(fs::read_to_string(run.join("metrics.csv")).unwrap().starts_with("type,step,stage,epoch,"));
}

#[cfg(unix)]
#[test]
fn events_for_tensorboard_are_continued_by_a_resumed_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "120");
    interrupted(folder, &["--tensorboard"]);
    let run = folder.join("run");
    let files = || ofa_supernet::files::list_folder(&run.join("tensorboard")).unwrap();
    let tags = |name: &str| {
        let bytes = fs::read(&files()[0]).unwrap();
        bytes.windows(name.len()).filter(|window| *window == name.as_bytes()).count()
    };
    let drawn = |lines: Vec<Value>, kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((files().len(), tags("train/loss")), (1, drawn(metrics(&run), "step")));
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert_eq!((files().len(), tags("train/loss")), (1, drawn(metrics(&run), "step")));
    assert_eq!(tags("validation/largest") * 3, drawn(metrics(&run), "probe"));
    // Without the option there are none.
    small_configuration(folder, "d.toml", "0.6");
    succeeds(folder, &["train", "--config", "d.toml", "--out", "plain"]);
    assert!(!folder.join("plain/tensorboard").exists());
}

/// TensorBoard's own reader finds the numbers of `metrics.jsonl`.
#[test]
#[ignore = "needs Python with tensorboard"]
fn tensorboard_reads_the_events() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "0.6");
    succeeds(folder, &["train", "--config", "c.toml", "--out", "run", "--tensorboard"]);
    let python = std::env::var("OFA_PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_events.py");
    let output = std::process::Command::new(python).arg(script).arg(folder.join("run")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn results_of_costs_of_int8_models_are_extracted_as_such() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let small = ["--name", "small", "--at-least", "accuracy=1%", "--minimise", "any:size-int8"];
    let front = ["--name", "front", "--strategy", "pareto", "--generations", "2", "--against", "any:memory-int8"];
    for (arguments, cost) in [(&small[..], "any:size-int8"), (&front[..], "any:memory-int8")] {
        for file in fs::read_dir(folder.join("run/search")).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        succeeds(folder, &[&["search", "--run", "run"], arguments].concat());
        let next = status(folder, "run")["next"].to_string();
        assert!(next.contains("--search-results --int8"), "{next}");
        let extract = ["extract", "--run", "run", "--search-results", "--recalibration", "20", "--no-sample"];
        let output = common::ofa(folder, &extract);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        assert!(err.lines().any(|line| line.contains(cost) && line.contains("give --int8")), "{err}");
    }
}
