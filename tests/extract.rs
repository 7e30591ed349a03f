//! `ofa extract` through the binary.

mod common;

use common::{changed, command, fails, finished_resnet_run, finished_run, ofa, succeeds, write_two_classes};
use ofa_evaluate::model::load_config;
use ofa_supernet::train::checkpoint::{read_supernet, write_supernet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

#[test]
fn a_fine_tuned_model_in_half_precision_is_half_as_large() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let arguments = ["extract", "--run", "run", "--subnet", "smallest", "--name", "tuned", "--finetune", "1"];
    let out = succeeds(folder, &[&arguments[..], &["--dtype", "f16"]].concat());
    assert!(out.contains("run/models/tuned"), "{out}");
    let bytes =
        |model: &str| fs::metadata(folder.join("run/models").join(model).join("model.safetensors")).unwrap().len();
    assert!((bytes("tuned") as f64) < 0.7 * bytes("smallest") as f64);
    // Whichever weights are better, fine-tuning was done.
    let held = load_config(&folder.join("run/models/tuned")).unwrap();
    assert_eq!(held.finetuned.or(held.tried_finetuning).map(|tuning| tuning.epochs), Some(1.0));
}

#[test]
fn a_model_folder_tells_its_facts_and_where_it_comes_from() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--subnet", "smallest", "--overwrite"]);
    let json = |path: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let config = |model: &str| json(&folder.join("run/models").join(model).join("config.json"));
    let smallest = config("smallest");
    assert_eq!(smallest["architecture"]["padding"], "half_kernel");
    let input = serde_json::json!({ "colours": "rgb", "crop": "central_square", "resize": "antialiased_bilinear" });
    assert_eq!(smallest["input"], input);
    let provenance = &smallest["provenance"];
    assert!(provenance["ofa"].as_str().unwrap().starts_with(concat!(env!("CARGO_PKG_VERSION"), " (")));
    assert_eq!((&provenance["run"], &provenance["search"]), (&"run".into(), &serde_json::Value::Null));
    assert!(provenance["predicted_accuracy"].is_f64() && provenance["validation_accuracy"].is_f64());
    for file in fs::read_dir(folder.join("run/search")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let (result, provenance) = (json(&file), &config(name)["provenance"]);
        assert_eq!(
            (provenance["search"].as_str(), &provenance["limits"][0]),
            (Some(name), &result["constraints"][0]["constraint"])
        );
        assert_eq!(provenance["predicted_accuracy"], result["predicted_accuracy"]);
        // A block of this model has squeeze-excite if its layers say so.
        let config = config(name);
        let gated = config["network"].to_string().contains("\"squeeze_excite\":8");
        let facts = &config["architecture"]["squeeze_excite"];
        assert!(!gated || (facts["gate"] == "hard_sigmoid" && facts["inner_activation"] == "relu"), "{facts}");
    }
    // A folder of an earlier version has none of this; one that says something else is refused.
    let path = folder.join("run/models/smallest/config.json");
    let mut old = smallest.clone();
    ["architecture", "input", "provenance"].iter().for_each(|key| drop(old.as_object_mut().unwrap().remove(*key)));
    fs::write(&path, old.to_string()).unwrap();
    succeeds(folder, &["bench", "run/models/smallest"]);
    for (part, key, value, expected) in [
        ("input", "crop", "central_square_224_of_256", "'input' is not that of a network for 16 pixels"),
        ("input", "colours", "bgr", "bgr"),
        ("architecture", "padding", "none", "none"),
        ("provenance", "author", "me", "author"),
    ] {
        let mut changed = smallest.clone();
        changed[part][key] = value.into();
        fs::write(&path, changed.to_string()).unwrap();
        fails(folder, &["bench", "run/models/smallest"], &["run/models/smallest/config.json", expected]);
    }
}

#[test]
fn a_damaged_model_is_replaced() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let config = folder.join("run/models/smallest/config.json");
    fs::write(&config, changed(&fs::read_to_string(&config).unwrap(), "\"labels\"", "\"lables\"")).unwrap();
    fails(folder, &["bench", "run/models/smallest"], &["config.json", "did you mean `labels`?"]);
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"]);
    succeeds(folder, &["bench", "run/models/smallest"]);
}

#[test]
fn subnets_of_a_resnet_are_found_by_text_setting_and_search() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_resnet_run(folder);
    let subnet = "r24 w0.5,1,1,0.5 s1 d2,1 e0.25,0.5|0.25";
    succeeds(folder, &["search", "--run", "run", "--generations", "3", "--limit", "any:macs=0.8M"]);
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--subnet", "largest"]);
    let setting = r#"{"d": [1, 1, 0], "e": [0.25, 0.5, 0.25, 0.5], "w": [0, 1, 1, 0], "r": 24}"#;
    let tuned = ["extract", "--run", "run", "--subnet", setting, "--name", "tuned", "--finetune", "0.1"];
    let out = succeeds(folder, &tuned);
    assert!(out.contains(subnet), "{out}");
    let out = succeeds(folder, &["bench", "run/models/tuned", "run/models/largest", "--batch", "1,3", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(rows["models"][0]["parameters"].as_f64() < rows["models"][1]["parameters"].as_f64(), "{out}");
    let outside = subnet.replace("w0.5", "w0.7");
    fails(folder, &["extract", "--run", "run", "--subnet", &outside], &["width is 0.7", "0.5, 1"]);
}

#[test]
fn a_setting_is_read_as_the_published_search_prints_it() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    for (number, setting) in [
        r#"{"wid": null, "ks": [5, 5, 5, 5], "e": [4, 4, 4, 4], "d": [2, 2], "r": [32]}"#,
        r#"{"ks": [3, null, 3, null], "e": [2, null, 2, null], "d": [1, 1], "r": 16}"#,
        "{'wid': None, 'ks': [5, 5, 5, 5], 'e': [4, 4, 4, 4], 'd': [2, 2], 'r': [32]}",
    ]
    .into_iter()
    .enumerate()
    {
        let name = number.to_string();
        let arguments = ["extract", "--run", "run", "--recalibration", "20", "--name", &name, "--subnet", setting];
        let out = succeeds(folder, &arguments);
        assert!(out.contains(if number == 1 { "r16 d1,1 k3|3 e2|2" } else { "r32 d2,2 k5,5|5,5 e4,4|4,4" }), "{out}");
    }
}

/// A folder with images and a trained run named `name`.
fn trained(name: &str) -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    write_two_classes(&temporary.path().join("images"), 24, 6);
    let train = ["train", "--preset", "tiny", "--data", "images", "--epochs", "6", "--batch", "8", "--validation", "8"];
    succeeds(temporary.path(), &[&train[..], &["--out", name]].concat());
    temporary
}

fn weights(model: &Path) -> Vec<u8> {
    fs::read(model.join("model.safetensors")).unwrap()
}

/// Names of the models of `run`.
fn models(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("run/models")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_fine_tuned_model_or_another_subnet_is_only_replaced_when_asked() {
    let temporary = trained("run");
    let folder = temporary.path();
    let model = folder.join("run/models/smallest");
    let extract = ["extract", "--run", "run", "--subnet", "smallest"];
    let tune = [&extract[..], &["--finetune", "1"]].concat();

    succeeds(folder, &extract);
    let plain = weights(&model);
    assert_eq!(load_config(&model).unwrap().finetuned, None);
    // A model that can be extracted again is replaced: nothing is lost.
    succeeds(folder, &extract);
    assert!(weights(&model) == plain);
    succeeds(folder, &tune);
    let tuned = weights(&model);
    assert!(tuned != plain);
    let how = load_config(&model).unwrap().finetuned.unwrap();
    assert_eq!((how.epochs, how.learning_rate), (1.0, 0.005));

    for again in [&extract[..], &tune] {
        fails(folder, again, &["run/models/smallest", "fine-tuned", "--overwrite", "--name"]);
        assert!(weights(&model) == tuned);
    }
    succeeds(folder, &[&extract[..], &["--overwrite"]].concat());
    assert!(weights(&model) == plain);

    let other = ["extract", "--run", "run", "--subnet", "largest", "--name", "smallest"];
    fails(folder, &other, &["run/models/smallest", "another subnet", "--overwrite"]);
    assert!(weights(&model) == plain);
    succeeds(folder, &[&other[..], &["--overwrite"]].concat());

    // A damaged configuration still tells of fine-tuning.
    succeeds(folder, &[&tune[..], &["--overwrite"]].concat());
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), changed(&config, "\"labels\"", "\"lables\"")).unwrap();
    fails(folder, &extract, &["run/models/smallest/config.json", "lables", "--overwrite"]);
}

#[test]
fn fine_tuning_shows_both_accuracies_and_keeps_the_better_weights() {
    let temporary = trained("run");
    let folder = temporary.path();
    let model = folder.join("run/models/smallest");
    let extract = ["extract", "--run", "run", "--subnet", "smallest", "--overwrite"];
    succeeds(folder, &extract);
    let plain = weights(&model);

    let output = ofa(folder, &[&extract[..], &["--finetune", "1", "--finetune-rate", "2"]].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(out.lines().next().unwrap().contains("before  fine-tuned  stored"), "{out}");
    let row = out.lines().find(|line| line.contains("%  before")).unwrap_or_else(|| panic!("{out}"));
    let percentages: Vec<&str> = row.split(" %").filter_map(|part| part.split_whitespace().last()).collect();
    let (before, after) = (percentages[0], percentages[1]);
    // What is left of the weights at this rate depends on rounding.
    assert!(before == "100.00" && after.parse::<f64>().unwrap() < 100.0, "{out}");
    let warning =
        format!("warning: run/models/smallest: fine-tuning took validation accuracy from {before} to {after} %");
    assert!(err.contains(&warning) && err.contains("--finetune-rate"), "{err}");
    let held = load_config(&model).unwrap();
    assert!(weights(&model) == plain && held.finetuned.is_none());
    assert_eq!(held.tried_finetuning.map(|tried| (tried.epochs, tried.learning_rate)), Some((1.0, 2.0)));

    let out = succeeds(folder, &[&extract[..], &["--finetune", "1"]].concat());
    assert!(out.contains("100.00 %    100.00 %  fine-tuned"), "{out}");
    assert!(weights(&model) != plain);
}

#[test]
fn names_of_models_are_plain_and_name_one_subnet() {
    let temporary = trained("run");
    let folder = temporary.path();
    let extract = |more: &[&str]| -> Vec<String> {
        let arguments = [&["extract", "--run", "run", "--subnet", "smallest"], more].concat();
        arguments.into_iter().map(String::from).collect()
    };
    let refused = |more: &[&str], parts: &[&str]| {
        let arguments = extract(more);
        fails(folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    for name in ["", ".", "..", "../../evil", "a/b", "/evil", ".hidden", "two words", &"x".repeat(201)] {
        refused(&["--name", name], &["--name", "expected"]);
    }
    refused(&["--subnet", "largest", "--name", "mine"], &["--name 'mine'", "2 are given"]);
    fails(
        folder,
        &["extract", "--run", "run", "--search-results", "--name", "mine"],
        &["--name 'mine'", "0 are given"],
    );
    assert!(!folder.join("run/models").exists() && !folder.join("evil").exists());

    succeeds(
        folder,
        &["extract", "--run", "run", "--subnet", "smallest", "--subnet", "r16 d1,1 k3|3 e2|2", "--subnet", "largest"],
    );
    assert_eq!(models(folder), ["largest", "r16-d1-1-k3-3-e2-2", "smallest"]);
    fails(folder, &["profile", "--run", "run", "--name", "../evil"], &["'../evil'", "expected"]);
}

#[test]
fn search_results_that_are_missing_or_of_another_space_are_named() {
    let temporary = trained("run");
    let folder = temporary.path();
    let extract = ["extract", "--run", "run", "--search-results"];
    fails(folder, &extract, &["run/search: there are no search results yet", "ofa search --run run "]);
    fs::create_dir(folder.join("run/search")).unwrap();
    fails(folder, &extract, &["run/search: there are no search results yet"]);

    let train =
        ["predictor", "--run", "run", "--samples", "10", "--recalibration", "20", "--images", "8", "--batch", "8"];
    succeeds(folder, &train);
    succeeds(folder, &["search", "--run", "run", "--limit", "any:macs=500k", "--generations", "2"]);
    let found = folder.join("run/search/any-macs-500k.json");
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(&found).unwrap()).unwrap();
    // Search results are extracted again as long as they name the same subnet.
    succeeds(folder, &extract);
    succeeds(folder, &extract);

    let first = result["best"].clone();
    let [small, large] = ["r16 d1,1 k3|3 e2|2", "r32 d1,1 k3|3 e2|2"];
    result["best"] = if first == small { large } else { small }.into();
    fs::write(&found, result.to_string()).unwrap();
    fails(folder, &extract, &["run/models/any-macs-500k", "another subnet", "--overwrite"]);
    result["best"] = "r17 d1,1 k3|3 e2|2".into();
    fs::write(&found, result.to_string()).unwrap();
    let err = fails(folder, &extract, &["resolution"]);
    assert!(err.lines().last().unwrap().starts_with("error: run/search/any-macs-500k.json: "), "{err}");
    fs::rename(&found, folder.join("run/search/two words.json")).unwrap();
    result["best"] = first;
    fs::write(folder.join("run/search/two words.json"), result.to_string()).unwrap();
    fails(folder, &extract, &["run/search/two words.json", "model"]);
}

#[test]
fn hints_quote_names_for_a_shell() {
    let temporary = trained("my run");
    let folder = temporary.path();
    fs::rename(folder.join("images"), folder.join("it's")).unwrap();
    let out = succeeds(folder, &["extract", "--run", "my run", "--subnet", "smallest", "--data", "it's"]);
    let hint = out.lines().last().unwrap().strip_prefix("Next: ofa ").unwrap();
    assert_eq!(hint, r"bench 'my run'/models/* --data 'it'\''s'");
    // A shell runs the hint as it is printed.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("\"$0\" {hint}"), env!("CARGO_BIN_EXE_ofa")]).current_dir(folder);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fails(folder, &["search", "--run", "no run", "--limit", "any:macs=1M"], &["`ofa train --out 'no run'`"]);
}

/// PyTorch's `state_dict` counts batches beside the running statistics.
#[test]
fn a_model_that_pytorch_saved_again_is_read() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
    let temporary = trained("run");
    let folder = temporary.path();
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest"]);
    let path: PathBuf = folder.join("run/models/smallest/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let count = 9i64.to_le_bytes();
    let counter = |name: &str| name.strip_suffix("running_mean").map(|norm| format!("{norm}num_batches_tracked"));
    let counters: Vec<String> = file.names().into_iter().filter_map(counter).collect();
    assert!(counters.len() > 5);
    let save = |counters: &[String]| {
        let mut tensors: Vec<(String, TensorView)> = file.iter().map(|(name, view)| (name.to_string(), view)).collect();
        tensors.extend(counters.iter().map(|n| (n.clone(), TensorView::new(Dtype::I64, vec![], &count).unwrap())));
        fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
    };
    save(&counters);
    let out = succeeds(folder, &["bench", "run/models/smallest", "--data", "images"]);
    assert!(out.lines().last().unwrap().starts_with("smallest  100.00 %"), "{out}");
    save(&["other.num_batches_tracked".into()]);
    fails(folder, &["bench", "run/models/smallest"], &["model.safetensors", "'other.num_batches_tracked'"]);
}

#[cfg(unix)]
#[test]
fn a_signal_stops_fine_tuning_and_nothing_is_stored() {
    let temporary = trained("run");
    let folder = temporary.path();
    let mut child =
        command(folder, &["extract", "--run", "run", "--subnet", "smallest", "--finetune", "100000"]).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("fine-tuning 'r")), "it ended before");
    assert!(common::signal("TERM", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!folder.join("run/models/smallest").exists());
}

#[test]
fn an_outdated_search_result_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::remove_dir_all(folder.join("run/search")).unwrap();
    let limits = ["--limit", "any:macs=0.4M", "--limit", "this:latency=1s"];
    succeeds(folder, &[&["search", "--run", "run", "--generations", "2"], &limits[..]].concat());
    let warnings = || {
        let output = ofa(folder, &["extract", "--run", "run", "--search-results", "--recalibration", "20"]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{err}");
        err
    };
    let (macs, latency) = ("warning: run/search/any-macs-400k.json: ", "warning: run/search/this-latency-1s.json: ");
    let err = warnings();
    assert!(!err.contains("warning"), "{err}");

    // The device became slower.
    let profile = folder.join("run/devices/this.json");
    let good = fs::read_to_string(&profile).unwrap();
    let mut slow: serde_json::Value = serde_json::from_str(&good).unwrap();
    slow["calibration"]["overhead_ms"] = 2000.0.into();
    fs::write(&profile, slow.to_string()).unwrap();
    let err = warnings();
    assert!(
        err.contains(&format!("{latency}with the current profile the subnet has 2.")) && !err.contains(macs),
        "{err}"
    );
    fs::write(&profile, good).unwrap();

    // Another predictor, other weights, and a result of an earlier version.
    succeeds(folder, &["predictor", "--run", "run", "--samples", "16", "--recalibration", "300", "--members", "1"]);
    let err = warnings();
    assert!(
        err.contains(&format!("{macs}the result was found with an earlier predictor")) && err.contains(latency),
        "{err}"
    );
    let path = folder.join("run/checkpoints/supernet.safetensors");
    let (state, note) = read_supernet(&path).unwrap();
    let state = state.into_iter().map(|(name, tensor)| (name, (tensor * 1.001).unwrap())).collect();
    write_supernet(&path, state, &note).unwrap();
    let err = warnings();
    assert!(
        err.contains(&format!("{macs}the result was found for other weights")) && err.contains("search again"),
        "{err}"
    );
    // What shows them warns of the same.
    for arguments in [["report", "--run", "run", "--json"], ["status", "--run", "run", "--json"]] {
        let output = ofa(folder, &arguments);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(shown.contains(&format!("{macs}the result was found for other weights")), "{shown}");
        assert!(shown.contains("predictor.safetensors: the predictor was fitted for other weights"), "{shown}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["warnings"].as_array().unwrap().len(), shown.matches("warning: ").count(), "{shown}");
        assert!(arguments[0] == "report" || value["next"][0] == "ofa predictor --run run --discard", "{value}");
    }
    succeeds(folder, &["report", "--run", "run"]);
    let page = fs::read_to_string(folder.join("run/report.html")).unwrap();
    assert!(page.contains("<b>Warning: </b>run/predictor/predictor.safetensors: the predictor was fitted for"));
    // Nor does the predictor know these weights.
    let smallest = ["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20", "--json"];
    let out: serde_json::Value = serde_json::from_str(&succeeds(folder, &smallest)).unwrap();
    assert!(out["models"][0]["predicted"].is_null() && out["models"][0]["accuracy"].is_f64(), "{out}");
    let path = folder.join("run/search/any-macs-400k.json");
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    result.as_object_mut().unwrap().remove("basis");
    fs::write(&path, result.to_string()).unwrap();
    let err = warnings();
    assert!(err.contains(&format!("{macs}this result of an earlier version does not record the weights")), "{err}");
}

#[test]
fn a_search_result_of_another_space_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let path = folder.join("run/search/other.json");
    let some = fs::read_dir(folder.join("run/search")).unwrap().next().unwrap().unwrap().path();
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(some).unwrap()).unwrap();
    result["best"] = "r24 w0.5,1,1,0.5 s1 d2,1 e0.25,0.5|0.25".into();
    fs::write(&path, result.to_string()).unwrap();
    fails(folder, &["extract", "--run", "run", "--search-results"], &["error: run/search/other.json: ", "widths"]);
}

#[test]
fn a_search_result_says_what_was_predicted_and_is_measured_as_a_sample() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::remove_dir_all(folder.join("run/search")).unwrap();
    let search = |more: &[&str]| {
        let search = ["search", "--run", "run", "--limit", "any:macs=300k", "--strategy", "random", "--name", "mine"];
        succeeds(folder, &[&search, more].concat())
    };
    let samples = || fs::read_to_string(folder.join("run/predictor/samples.jsonl")).unwrap();
    let before = samples();
    search(&["--evaluations", "300"]);
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--no-sample"]);
    assert_eq!(samples(), before);
    let extract = ["extract", "--run", "run", "--search-results", "--recalibration", "20"];
    let out = succeeds(folder, &extract);
    assert!(out.contains("predicted") && out.contains("validation"), "{out}");
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("run/search/mine.json")).unwrap()).unwrap();
    let best = result["best"].as_str().unwrap();
    let added = samples()[before.len()..].to_string();
    assert!(before.contains(best) || (added.contains(best) && added.contains("measured_with")), "{added}");
    let config = fs::read_to_string(folder.join("run/models/mine/config.json")).unwrap();
    assert!(config.contains("Result of the search `mine` (any:macs=300k; random"), "{config}");
    // Another search of this name does not replace the model.
    fs::remove_file(folder.join("run/search/mine.json")).unwrap();
    search(&["--evaluations", "300", "--seed", "7"]);
    fails(folder, &extract, &["models/mine", "another search", "--overwrite"]);
    fails(folder, &["extract", "--run", "run", "--subnet", best, "--name", "mine"], &["another search", "--overwrite"]);
}
