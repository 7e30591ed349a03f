//! `ofa search` through the binary.

mod common;

use common::{fails, finished_resnet_run, finished_run, misused, ofa, succeeds};
use ofa_supernet::files::read_json;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Results of a search in the run `run`.
#[track_caller]
fn search(folder: &Path, arguments: &[&str]) -> Value {
    let out = succeeds(folder, &[&["search", "--run", "run", "--json"], arguments].concat());
    serde_json::from_str::<Value>(&out).unwrap()["results"].take()
}

#[track_caller]
fn refuses(folder: &Path, arguments: &[&str], expected: &[&str]) {
    fails(folder, &[&["search", "--run", "run"], arguments].concat(), expected);
}

#[track_caller]
fn assert_within_limits(result: &Value) {
    for constraint in result["constraints"].as_array().unwrap() {
        assert!(constraint["value"].as_f64().unwrap() <= constraint["limit"].as_f64().unwrap(), "{constraint}");
    }
}

#[test]
fn each_limit_gets_a_result_of_its_own() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let results = search(folder, &["--limit", "this:latency=1s", "--limit", "any:macs=0.5M", "--generations", "5"]);
    assert_eq!(results.as_array().unwrap().len(), 2);
    assert!(results[1]["constraints"][0]["value"].as_f64().unwrap() <= 0.5e6);
    assert!(folder.join("run/search/any-macs-500k.json").exists());
}

#[test]
fn limits_of_one_cost_are_searched_together() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let limits = ["any:macs=400k", "this:latency=1s", "any:macs=0.6M", "any:macs=500k"];
    let arguments: Vec<&str> = limits.iter().flat_map(|limit| ["--limit", limit]).collect();
    let results = search(folder, &arguments);
    let results = results.as_array().unwrap();
    for (result, limit) in results.iter().zip(limits) {
        assert_within_limits(result);
        assert_eq!(result["constraints"][0]["constraint"].as_str().unwrap().replace("600k", "0.6M"), limit);
    }
    let number = |index: usize, key: &str| results[index][key].as_f64().unwrap();
    assert_eq!(number(0, "evaluations"), number(2, "evaluations"));
    let best = |index: usize| results[index]["history"].as_array().unwrap().last().unwrap()["score"].as_f64().unwrap();
    assert!(best(0) <= best(3) && best(3) <= best(2));
    let stored = |name: &str| read_json::<Value>(&folder.join(format!("run/search/{name}.json"))).unwrap();
    let names = ["any-macs-400k", "this-latency-1s", "any-macs-600k", "any-macs-500k"];
    for (name, result) in names.into_iter().zip(results) {
        let mut result = result.clone();
        // The file's name is its own.
        assert_eq!(result.as_object_mut().unwrap().remove("name"), Some(name.into()));
        assert_eq!(stored(name), result);
    }
    // The same search finds the same and replaces its files.
    let again = search(folder, &arguments);
    for (again, result) in again.as_array().unwrap().iter().zip(results) {
        assert_eq!((&again["best"], &again["history"]), (&result["best"], &result["history"]));
    }
    assert!(!folder.join("run/search/any-macs-400k-2.json").exists());
}

#[test]
fn a_limit_that_no_subnet_can_meet_is_refused_with_the_smallest_value() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    refuses(temporary.path(), &["--limit", "any:macs=1k"], &["smallest"]);
    refuses(
        temporary.path(),
        &["--limit", "any:macs=400k", "--limit", "any:memory=1KB", "--together"],
        &["memory", "smallest value it can reach"],
    );
}

#[test]
fn an_unknown_device_is_refused_with_the_known_ones() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    let words = ["phone", "this", "`ofa profile --run RUN --name phone`"];
    refuses(temporary.path(), &["--limit", "phone:latency=1ms"], &words);
}

#[test]
fn every_strategy_keeps_three_binding_limits_on_two_devices() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    succeeds(
        folder,
        &["profile", "--run", "run", "--name", "two", "--model-threads", "2", "--rounds", "3", "--check", "5"],
    );
    // Limits that bind: a fraction of the values of the best subnet without limits.
    let subjects = ["this:latency", "two:latency", "any:size-f16"];
    let wide = ["--limit", "this:latency=9s", "--limit", "two:latency=9s", "--limit", "any:size-f16=9GB", "--together"];
    let free = search(folder, &wide);
    let limits: Vec<String> = subjects
        .iter()
        .zip(["ms", "ms", "B"])
        .zip(free[0]["constraints"].as_array().unwrap())
        .flat_map(|((subject, unit), found)| {
            ["--limit".into(), format!("{subject}={:.6}{unit}", 0.8 * found["value"].as_f64().unwrap())]
        })
        .chain(["--together".into()])
        .collect();
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    for strategy in ["random", "grid", "evolution", "bayes", "ppo", "gradient"] {
        let results = search(folder, &[&["--strategy", strategy, "--evaluations", "60"], &limits[..]].concat());
        let result = &results[0];
        assert_eq!(result["settings"]["strategy"], strategy);
        assert!(result["evaluations"].as_u64().unwrap() <= 60, "{strategy}");
        assert_eq!(result["constraints"].as_array().unwrap().len(), 3);
        assert_within_limits(result);
        assert_ne!(result["best"], free[0]["best"], "{strategy}");
    }
}

#[test]
fn pareto_finds_a_front_against_two_costs() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let arguments = ["--strategy", "pareto", "--against", "any:macs", "--against", "any:params", "--generations", "5"];
    let found = &search(folder, &arguments)[0];
    let front = found["front"].as_array().unwrap();
    assert!(front.len() > 3 && front.iter().all(|point| point["values"].as_array().unwrap().len() == 2), "{front:?}");
    assert!(folder.join("run/search/front+any-macs+any-params.json").exists());
    let volume = found["hypervolume"].as_f64().unwrap();
    assert!(volume > 0.0 && volume < 1.0, "{volume}");
    let table = fs::read_to_string(folder.join("run/search/front+any-macs+any-params.csv")).unwrap();
    assert!(table.starts_with("any:macs,any:params,accuracy,subnet\n"), "{table}");
    assert_eq!(table.lines().count(), 1 + front.len());
}

#[test]
fn the_best_subnets_are_verified_or_measured_throughout() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let images = ["--recalibration", "50", "--images", "50", "--limit", "any:macs=400k"];
    let verified = &search(folder, &[&["--verify", "2", "--generations", "3"], &images[..]].concat())[0];
    assert!(verified["measured_accuracy"].as_f64().is_some(), "{verified}");
    assert_eq!(verified["top"].as_array().unwrap().len(), 2);
    // The predictor is fitted again to samples of the same conditions. Those of others do not decide what is measured.
    let verify = |more: &[&str]| {
        let arguments =
            ["search", "--run", "run", "--json", "--verify", "4", "--seed", "7", "--limit", "any:macs=400k"];
        let output = ofa(folder, &[&arguments, more].concat());
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let top = found["results"][0]["top"].as_array().unwrap();
        let subnets: Vec<Value> = top.iter().map(|candidate| candidate["subnet"].clone()).collect();
        (subnets, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(verify(&[]).1.contains("the predictor is fitted again with 2 measured subnets"));
    let (among_others, said) = verify(&images[..4]);
    assert!(said.contains("not fitted again: its samples were measured with other images"), "{said}");
    fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    assert_eq!(verify(&images[..4]).0, among_others);
    let arguments = ["--score", "measured", "--strategy", "bayes", "--evaluations", "5"];
    let measured = &search(folder, &[&arguments, &images[..]].concat())[0];
    assert_eq!(measured["measured_accuracy"], measured["predicted_accuracy"]);
    assert_eq!(measured["evaluations"], 5);
    // Nothing of it is a prediction.
    let named = ["search", "--run", "run", "--name", "mine"];
    let out = succeeds(folder, &[&named[..], &arguments, &images[..]].concat());
    assert!(out.contains("measured") && !out.contains("predicted"), "{out}");
    // A taken or bad name is refused before anything is measured.
    let before = fs::read(folder.join("run/search/mine.json")).unwrap();
    let endless = ["--score", "measured", "--evaluations", "1000000"];
    refuses(folder, &[&["--name", "mine"], &endless[..], &images[..]].concat(), &["mine.json", "another --name"]);
    refuses(folder, &[&["--name", "a b"], &endless[..], &images[..]].concat(), &["--name 'a b'"]);
    assert_eq!(fs::read(folder.join("run/search/mine.json")).unwrap(), before);
}

#[test]
fn strategies_are_compared_at_equal_budgets() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let compare = ["search", "--run", "run", "--limit", "any:macs=400k", "--compare", "--seeds", "2", "--evaluations"];
    let out = succeeds(folder, &[&compare[..], &["50"]].concat());
    for name in ["memetic", "evolution", "pareto", "random", "grid", "rounds", "bayes", "ppo", "gradient", "spread"] {
        assert!(out.contains(name), "'{name}' is not in: {out}");
    }
    // A strategy that can draw a front, but need not, does not draw one here either.
    let out = succeeds(folder, &[&compare[..], &["20", "--json"]].concat());
    let rows = serde_json::from_str::<Value>(&out).unwrap()["comparisons"][0]["strategies"].take();
    let row = rows.as_array().unwrap().iter().find(|row| row["strategy"] == "rounds").unwrap();
    let alone = ["0", "1"].map(|seed| {
        let arguments = ["--limit", "any:macs=400k", "--strategy", "rounds", "--evaluations", "20", "--seed", seed];
        search(folder, &arguments)[0]["history"].as_array().unwrap().last().unwrap()["score"].as_f64().unwrap()
    });
    let extremes = ["best", "worst"].map(|key| row[key].as_f64().unwrap());
    assert_eq!(extremes, [alone[0].max(alone[1]), alone[0].min(alone[1])]);
}

#[test]
fn subnets_of_a_resnet_keep_their_limits() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_resnet_run(folder);
    let limits = ["--limit", "this:latency=1s", "--limit", "any:macs=0.8M", "--limit", "any:memory=60KB"];
    let results = search(folder, &[&["--generations", "3"], &limits[..]].concat());
    for result in results.as_array().unwrap() {
        assert_within_limits(result);
        assert!(result["best"].as_str().unwrap().contains(" w"), "{result}");
    }
}

#[test]
fn damaged_files_of_a_run_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let arguments = ["--limit", "this:latency=1s", "--generations", "2"];
    search(folder, &arguments);
    let damage = |file: &str, bytes: &[u8], expected: &[&str]| {
        let path = folder.join("run").join(file);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).unwrap();
        refuses(folder, &arguments, &[&[file], expected].concat());
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    };
    let supernet = fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let mut flipped = supernet.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    damage("checkpoints/supernet.safetensors", &flipped, &["checksum"]);
    damage("checkpoints/supernet.safetensors", &supernet[..middle], &["safetensors"]);
    damage("checkpoints/supernet.safetensors", b"", &["safetensors"]);
    damage("predictor/predictor.safetensors", &supernet, &["no predictor"]);
    damage("devices/this.json", b"{\"name\": \"this\"}", &["JSON", "missing field"]);
    damage("devices/this.json", b"\xff\xfe", &["UTF-8"]);
    damage("config.toml", b"[data]\nsorce = 'x'\n", &["did you mean `source`?"]);
}

#[test]
fn the_result_of_many_limits_has_a_short_name_that_is_extracted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::remove_dir_all(folder.join("run/search")).unwrap();
    let label = "a".repeat(252);
    let limits: Vec<String> = (300..312).map(|number| format!("a-rather-long-label:macs={number}k")).collect();
    let mut arguments = vec!["--generations", "2", "--together"];
    limits.iter().for_each(|limit| arguments.extend(["--limit", limit]));
    search(folder, &arguments);
    // A different last limit gives another file.
    arguments.extend(["--limit", "a-rather-long-label:macs=312k"]);
    search(folder, &arguments);
    search(folder, &["--generations", "2", "--limit", &format!("{label}:macs=1M")]);
    let names: Vec<_> = fs::read_dir(folder.join("run/search")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|name| name.len() <= 200 + ".json".len()), "{names:?}");
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--recalibration", "20"]);
}

#[test]
fn a_damaged_profile_breaks_only_the_limits_that_name_it() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::write(folder.join("run/devices/._this.json"), b"\0\x05\x16\x07").unwrap();
    fs::write(folder.join("run/devices/notes.json"), b"[]").unwrap();
    let limited = |limit: &str| ofa(folder, &["search", "--run", "run", "--generations", "2", "--limit", limit]);
    for limit in ["this:latency=1s", "any:macs=1M", "notes:macs=1M"] {
        let output = limited(limit);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        assert_eq!(err.matches("skipped a device profile: run/devices/notes.json:").count(), 1, "{err}");
        assert!(!err.contains("._this"), "{err}");
    }
    common::refused(&limited("notes:latency=1s"), &["error: run/devices/notes.json: "]);
}

#[test]
fn settings_of_a_strategy_are_checked_before_anything_is_read() {
    let temporary = tempfile::tempdir().unwrap();
    for (arguments, reason) in [
        (&["--strategy", "random", "--generations", "3"][..], "--strategy random has no setting --generations"),
        (&["--strategy", "random", "--population", "5"], "--strategy random has no setting --population"),
        (&["--strategy", "ppo", "--batch", "1"], "--strategy ppo: --batch 1 is not between 2 and 10000"),
        (&["--strategy", "grid", "--parent-ratio", "0.5"], "--strategy grid has no setting --parent-ratio"),
    ] {
        refuses(temporary.path(), &[&["--limit", "any:macs=1M"], arguments].concat(), &[reason]);
    }
}

#[test]
fn a_limit_of_any_length_is_refused_in_a_few_lines() {
    let temporary = tempfile::tempdir().unwrap();
    let limit = "x".repeat(100_000);
    let output = ofa(temporary.path(), &["search", "--limit", &limit]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && err.len() < 2000 && err.contains("DEVICE:METRIC=VALUE"), "{err}");
    let limit = format!("any:macs\u{1b}[31m{}", "y".repeat(100_000));
    let err = ofa(temporary.path(), &["search", "--limit", &limit]).stderr;
    assert!(err.len() < 2000 && !err.contains(&0x1b), "{}", String::from_utf8_lossy(&err));
}

#[test]
fn a_latency_of_several_images_is_shown_as_such() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let path = folder.join("run/devices/this.json");
    let profile = fs::read_to_string(&path).unwrap();
    let eight = profile.replace("\"batch\": 1,", "\"batch\": 8,").replace("\"name\": \"this\"", "\"name\": \"b8\"");
    fs::write(folder.join("run/devices/b8.json"), eight).unwrap();
    let arguments =
        ["search", "--run", "run", "--limit", "b8:latency=1s", "--limit", "this:latency=1s", "--generations", "2"];
    let output = ofa(folder, &arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let row = |device: &str| out.lines().find(|line| line.starts_with(device)).unwrap().to_string();
    assert!(row("b8:").contains(" for 8 images") && !row("this:").contains("images"), "{out}");
    assert!(err.contains("b8:latency is for one run of 8 images") && !err.contains("this:latency is"), "{err}");
    let result =
        |name: &str| read_json::<Value>(&folder.join("run/search").join(name)).unwrap()["constraints"][0].clone();
    assert_eq!(result("b8-latency-1s.json")["batch"], 8);
    assert_eq!(result("this-latency-1s.json")["batch"], Value::Null);
    refuses(folder, &["--limit", "b8:latency=0.001us"], &["smallest value it can reach is", "us for 8 images"]);
}

#[test]
fn a_profile_of_another_space_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let other = folder.join("other");
    fs::create_dir(&other).unwrap();
    finished_resnet_run(&other);
    fs::copy(other.join("run/devices/this.json"), folder.join("run/devices/this.json")).unwrap();
    for more in [&["--limit", "this:latency=1s"][..], &["--limit", "this:latency=1s", "--compare"]] {
        refuses(folder, more, &["error: run/devices/this.json: ", "'resnet-tiny'", "ofa profile"]);
    }
}

#[test]
fn the_cheapest_subnet_that_is_good_enough_is_found() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let best = &search(folder, &["--limit", "any:macs=100M"])[0];
    let accuracy = best["predicted_accuracy"].as_f64().unwrap();
    let least = format!("accuracy={}%", 100.0 * (accuracy - 0.02));
    let cheap = &search(folder, &["--at-least", &least, "--minimise", "any:macs"])[0];
    let value = |result: &Value| result["constraints"][0]["value"].as_f64().unwrap();
    assert!(value(cheap) <= value(best), "{cheap}");
    assert_eq!(cheap["constraints"][0]["constraint"], "any:macs");
    assert_eq!(cheap["scoring"]["score"], "predictor");
    // Nothing cheaper is good enough: the search for the best within a smaller limit finds less.
    let below = format!("any:macs={}", 0.97 * value(cheap));
    let output = ofa(folder, &["search", "--run", "run", "--json", "--limit", &below]);
    if output.status.success() {
        let below: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = below["results"][0]["predicted_accuracy"].as_f64().unwrap();
        // Both are corrected, with an error of their own.
        assert!(found < accuracy - 0.01, "{found} of {accuracy}");
    } else {
        common::refused(&output, &["smallest value it can reach"]);
    }
    // What is found is good enough for what was asked, after its correction too, up to the best that there is.
    for part in 0..=6 {
        let least = (1e4 * (accuracy - 0.01 * f64::from(part))).floor() / 1e4;
        let asked = format!("accuracy={:.2}%", 100.0 * least);
        let found = &search(folder, &["--at-least", &asked, "--minimise", "any:macs"])[0];
        assert!(found["predicted_accuracy"].as_f64().unwrap() >= least - 1e-9, "{asked}: {found}");
        let name = found["name"].as_str().unwrap();
        assert!(name.len() <= "accuracy-12.34+any-macs".len(), "{name}");
    }
    refuses(folder, &["--at-least", "accuracy=100%", "--minimise", "any:macs"], &["no subnet", "the best has"]);
    let run = ["search", "--run", "run"];
    misused(folder, &[&run[..], &["--at-least", "90%", "--minimise", "any:macs"]].concat(), &["accuracy=90%"]);
    misused(folder, &[&run[..], &["--at-least", "accuracy=90%"]].concat(), &["required"]);
}

#[test]
fn no_search_overwrites_another() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let limit = ["--limit", "any:macs=400k", "--strategy", "random", "--evaluations", "50"];
    let run = |more: &[&str]| search(folder, &[&limit, more].concat());
    let mut first = run(&[]);
    // The file's name is its own.
    assert_eq!(first[0].as_object_mut().unwrap().remove("name"), Some("any-macs-400k".into()));
    let path = |name: &str| folder.join(format!("run/search/{name}.json"));
    assert_eq!(read_json::<Value>(&path("any-macs-400k")).unwrap(), first[0]);
    run(&["--seed", "3"]);
    assert_eq!(read_json::<Value>(&path("any-macs-400k")).unwrap(), first[0]);
    assert_eq!(read_json::<Value>(&path("any-macs-400k-2")).unwrap()["seed"], 3);
    run(&["--seed", "3"]);
    run(&[]);
    assert!(!path("any-macs-400k-3").exists());
    // Nor where several run at once.
    for limit in ["any:macs=410k", "any:macs=420k", "any:macs=430k"] {
        std::thread::scope(|scope| {
            for seed in ["1", "2", "3"] {
                let arguments = ["--limit", limit, "--strategy", "random", "--evaluations", "50", "--seed", seed];
                scope.spawn(move || search(folder, &arguments));
            }
        });
        let name = |end: &str| format!("any-macs-{}{end}", &limit["any:macs=".len()..]);
        let mut seeds = ["", "-2", "-3"].map(|end| read_json::<Value>(&path(&name(end))).unwrap()["seed"].as_u64());
        seeds.sort_unstable();
        assert_eq!(seeds, [Some(1), Some(2), Some(3)]);
    }
    run(&["--name", "mine"]);
    run(&["--name", "mine"]);
    let refused = [&limit[..], &["--name", "mine", "--seed", "4"]].concat();
    refuses(folder, &refused, &["mine.json", "another search", "--name"]);
    refuses(folder, &[&limit[..], &["--name", "../x"]].concat(), &["--name '../x'"]);
    // Latencies are written as they were given.
    let named = search(folder, &["--limit", "this:latency=350000us", "--limit", "this:latency=0.35s"]);
    assert_eq!(named[0]["constraints"][0]["constraint"], "this:latency=350000us");
    assert!(path("this-latency-350000us").exists() && path("this-latency-0.35s").exists());
}

#[test]
fn few_measurements_are_made_in_rounds() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let images = ["--recalibration", "20", "--images", "20", "--score", "measured", "--evaluations", "30"];
    let found = &search(folder, &[&images[..], &["--limit", "any:macs=400k"]].concat())[0];
    assert_eq!((&found["settings"]["strategy"], &found["scoring"]["score"]), (&"rounds".into(), &"measured".into()));
    assert!(found["scoring"]["measured_with"].is_object() && found["evaluations"].as_u64().unwrap() <= 30);
    let front = ["--strategy", "rounds", "--against", "any:macs"];
    let found = &search(folder, &[&images[..], &front].concat())[0];
    assert!(!found["front"].as_array().unwrap().is_empty() && found["constraints"].as_array().unwrap().is_empty());
}

#[test]
fn predictor_and_profile_are_judged() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    let out = succeeds(temporary.path(), &["search", "--run", "run", "--limit", "this:latency=1s"]);
    assert!(out.contains("predictor: Kendall's tau") && out.contains("held-out subnets: "), "{out}");
    assert!(out.contains("device 'this': latencies of"), "{out}");
}

#[test]
fn a_limit_of_another_number_type_than_the_model_is_noted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let profile =
        ["profile", "--run", "run", "--name", "phone", "--number-type", "int8", "--rounds", "1", "--check", "2"];
    succeeds(folder, &profile);
    for file in fs::read_dir(folder.join("run/search")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let notes = |arguments: &[&str], limit: &str| {
        let output = common::ofa(folder, arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        let notes = err.lines().filter(|line| line.contains(limit)).map(String::from).collect::<Vec<_>>();
        (out.into_owned(), notes)
    };
    let search = ["search", "--run", "run", "--evaluations", "30", "--limit"];
    let (out, of_search) = notes(&[&search[..], &["phone:latency=9s"]].concat(), "phone:latency");
    assert!(out.ends_with("Next: ofa extract --run run --search-results --int8\n"), "{out}");
    assert!(matches!(&of_search[..], [line] if line.contains("int8 models")), "{of_search:?}");
    let extract = ["extract", "--run", "run", "--search-results", "--recalibration", "50", "--no-sample"];
    let (_, found) = notes(&extract, "phone:latency=9s");
    assert!(matches!(&found[..], [line] if line.contains("extracted in f32; give --int8")), "{found:?}");
    assert_eq!(notes(&[&extract[..], &["--int8"]].concat(), "phone:latency=9s").1, Vec::<String>::new());
    fs::remove_file(folder.join("run/search/phone-latency-9s.json")).unwrap();
    let (out, of_search) = notes(&[&search[..], &["this:latency=9s"]].concat(), "int8");
    assert!(out.ends_with("--search-results\n") && of_search.is_empty(), "{out} {of_search:?}");
    assert_eq!(notes(&extract, "this:latency=9s").1, Vec::<String>::new());
    let (_, found) = notes(&[&extract[..], &["--int8"]].concat(), "this:latency=9s");
    assert!(matches!(&found[..], [line] if line.contains("is of f32 models")), "{found:?}");
    let (out, _) = notes(&[&search[..], &["any:size-f16=9GB"]].concat(), "size-f16");
    // Models of other results stay in their number type.
    assert!(out.ends_with("--search-results any-size-f16-9GB --dtype f16\n"), "{out}");
    fs::remove_file(folder.join("run/search/this-latency-9s.json")).unwrap();
    let of_size = |more: &[&str]| notes(&[&extract[..], more].concat(), "any:size-f16=9GB").1;
    let found = of_size(&[]);
    assert!(matches!(&found[..], [line] if line.contains("extracted in f32; give --dtype f16")), "{found:?}");
    assert_eq!(of_size(&["--dtype", "f16"]), Vec::<String>::new());
    let found = of_size(&["--dtype", "f16", "--int8"]);
    assert!(matches!(&found[..], [line] if line.contains("the int8 twin takes less")), "{found:?}");
}
