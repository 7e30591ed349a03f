//! `ofa predictor` through the binary: samples, active sampling and the learning curve.

mod common;

use candle_core::Tensor;
use common::{changed, fails, finished_run, misused, ofa, succeeds, tuning_configuration};
use ofa_extract::{FitSettings, Predictor, Sample};
use ofa_supernet::SearchSpace;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::checkpoint::{read_supernet, write_supernet};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Options of the quickstart's samples.
const SAMPLED: &[&str] = &["predictor", "--run", "run", "--recalibration", "300"];

fn samples(folder: &Path) -> String {
    fs::read_to_string(folder.join("run/predictor/samples.jsonl")).unwrap()
}

/// Changes a weight of the run's supernet, as further training would.
fn change_weights(folder: &Path) {
    let path = folder.join("run/checkpoints/supernet.safetensors");
    let (state, note) = read_supernet(&path).unwrap();
    let changed = |(name, tensor): (String, Tensor)| (name, (tensor * 1.001).unwrap());
    write_supernet(&path, state.into_iter().map(changed).collect(), &note).unwrap();
}

/// Standard error of a command that succeeds.
#[track_caller]
fn warnings(folder: &Path, arguments: &[&str]) -> String {
    let output = ofa(folder, arguments);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{err}");
    err
}

#[test]
fn earlier_samples_are_kept_when_more_are_measured() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let before = samples(folder);
    let out = succeeds(folder, &[SAMPLED, &["--samples", "20"]].concat());
    assert!(out.contains("20 subnets, 4 held out"), "{out}");
    assert!(samples(folder).starts_with(&before));
}

#[test]
fn samples_of_other_weights_or_settings_are_refused_by_name_or_discarded() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let before = samples(folder);
    let more = |arguments: &[&'static str]| [SAMPLED, &["--samples", "18"], arguments].concat();
    for (arguments, difference) in [
        (["--batch", "50"], "--batch 100 (now 50)"),
        (["--images", "20"], "--images 80 (now 20)"),
        (["--seed", "1"], "--seed 0 (now 1)"),
    ] {
        let again = "--recalibration 300 --images 80 --batch 100 --seed 0";
        fails(folder, &more(&arguments), &["error: run/predictor/samples.jsonl: ", difference, again, "--discard"]);
    }
    let config = fs::read_to_string(folder.join("run/config.toml")).unwrap();
    fs::write(folder.join("run/config.toml"), changed(&config, "seed = 0", "seed = 7")).unwrap();
    fails(folder, &more(&[]), &["run/predictor/samples.jsonl", "other data or normalisation"]);
    fs::write(folder.join("run/config.toml"), config).unwrap();
    change_weights(folder);
    fails(folder, &more(&[]), &["run/predictor/samples.jsonl", "other weights", "--discard"]);
    assert_eq!(samples(folder), before);

    let out = succeeds(folder, &more(&["--discard"]));
    assert!(out.contains("18 subnets"), "{out}");
    let anew = samples(folder);
    let header = |text: &str| text.lines().next().unwrap().to_string();
    assert_ne!(header(&anew), header(&before));
    // A stopped command is repeated as it was: samples that it measured already stay.
    let mut half: String = anew.lines().take(12).map(|line| format!("{line}\n")).collect();
    let (before_last, _) = half.rsplit_once(':').unwrap();
    half = format!("{before_last}:0.123}}\n");
    fs::write(folder.join("run/predictor/samples.jsonl"), &half).unwrap();
    succeeds(folder, &more(&["--discard"]));
    assert!(samples(folder).starts_with(&half));
}

/// Samples of a user, or of a version that did not record the conditions of their measurement.
#[test]
fn samples_without_recorded_conditions_are_used_with_a_warning() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let bare = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("measured_with").unwrap();
        format!("{line}\n")
    };
    let own: String = samples(folder).lines().map(bare).collect();
    fs::write(folder.join("run/predictor/samples.jsonl"), &own).unwrap();
    let warning = "run/predictor/samples.jsonl: 16 samples do not record the weights and images";
    let err = warnings(folder, &[SAMPLED, &["--samples", "18"]].concat());
    assert!(err.contains(warning) && err.contains("--discard"), "{err}");
    assert!(samples(folder).starts_with(&own) && samples(folder).lines().count() == 18);
    assert!(!warnings(folder, &[SAMPLED, &["--samples", "18", "--discard"]].concat()).contains(warning));
    assert!(samples(folder).lines().all(|line| line.starts_with("{\"measured_with\":\"weights ")));
}

#[test]
fn a_search_warns_of_a_predictor_of_other_weights() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let warning = "warning: run/predictor/predictor.safetensors: the predictor was fitted for other weights";
    assert!(!warnings(folder, &search(&[])).contains("other weights"));
    let fit: Value = serde_json::from_slice(&fs::read(folder.join("run/predictor/fit.json")).unwrap()).unwrap();
    let weights = fit["measured_with"]["weights"].as_str().unwrap().to_string();
    change_weights(folder);
    let err = warnings(folder, &search(&[]));
    assert!(err.contains(warning) && err.contains(&weights), "{err}");
    assert!(
        warnings(folder, &["search", "--run", "run", "--limit", "any:macs=0.4M", "--compare", "--evaluations", "5"])
            .contains(warning)
    );
    // Accuracies from elsewhere do not make the others good.
    fs::write(folder.join("one.csv"), "subnet,accuracy\n\"r24 d1,2 k5|3,5 e2|4,3\",0.5\n").unwrap();
    succeeds(folder, &["predictor", "--run", "run", "--import", "one.csv"]);
    let err = warnings(folder, &search(&[]));
    assert!(err.contains(warning) && err.contains(&weights), "{err}");
}

#[test]
fn a_search_warns_of_a_predictor_without_an_order() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let constant: String = samples(folder)
        .lines()
        .map(|line| match line.split_once("\"accuracy\":") {
            Some((subnet, _)) => format!("{subnet}\"accuracy\":0.5}}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(folder.join("run/predictor/samples.jsonl"), constant).unwrap();
    let doubt = "warning: run/predictor/predictor.safetensors: Kendall's tau is undefined on 3 held-out subnets";
    let err = warnings(folder, &[SAMPLED, &["--samples", "16"]].concat());
    assert!(err.contains(doubt), "{err}");
    let err = warnings(folder, &search(&[]));
    assert!(err.contains(doubt) && err.contains("--samples") && err.contains("--score measured"), "{err}");
}

#[test]
fn a_predictor_of_another_space_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let mut space = SearchSpace::named("tiny").unwrap();
    space.stages[1].channels += 8;
    let path = folder.join("run/predictor/predictor.safetensors");
    let drawn = (0..20).map(|i| space.sample(&mut generator(1, Stream::Sampling, &[i])));
    let samples: Vec<Sample> = drawn
        .map(|subnet| {
            let accuracy = subnet.resolution as f64 / 40.0;
            Sample::new(subnet, accuracy)
        })
        .collect();
    let settings = FitSettings::default();
    Predictor::fit(&space, &samples, &settings, 0, &mut |_, _, _| ()).unwrap().0.save(&path).unwrap();
    let expected = ["error: run/predictor/predictor.safetensors: ", "`stages[1].channels` is 32 instead of 24"];
    fails(folder, &search(&[]), &expected);
    fs::remove_file(&path).unwrap();
    fails(folder, &search(&[]), &["error: run/predictor/predictor.safetensors: ", "`ofa predictor --run run`"]);
}

#[test]
fn settings_that_no_predictor_can_be_fitted_with_are_refused_before_measuring() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::remove_dir_all(folder.join("run/predictor")).unwrap();
    fails(folder, &[SAMPLED, &["--samples", "5"]].concat(), &["--samples 5", "10"]);
    let alone = ["--active", "improvement", "--members", "1"];
    misused(folder, &[SAMPLED, &alone].concat(), &["--members 1", "--active improvement"]);
    assert!(!folder.join("run/predictor").exists());
}

/// A run with a space of `ratios` subnets.
fn run_of_few_subnets(folder: &Path, ratios: &str) {
    let mut config: String = String::new();
    tuning_configuration(folder, "1");
    for line in fs::read_to_string(folder.join("c.toml")).unwrap().lines() {
        let (key, _) = line.split_once(" = ").unwrap_or((line, ""));
        config += &match key {
            "resolutions" => "resolutions = [16]\n".into(),
            "kernel_sizes" => "kernel_sizes = [3]\n".into(),
            "depths" => "depths = [1]\n".into(),
            "expand_ratios" => format!("expand_ratios = {ratios}\n"),
            _ => format!("{line}\n"),
        };
    }
    let parts: Vec<&str> = config.split("[[train.stages]]").collect();
    fs::write(folder.join("c.toml"), parts[..2].join("[[train.stages]]")).unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
}

#[test]
fn a_space_of_few_subnets_has_no_predictor_and_is_searched_by_every_strategy() {
    for (ratios, count, only) in [("[2.0]", 1, "only one subnet"), ("[2.0, 3.0]", 4, "only 4 subnets")] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        run_of_few_subnets(folder, ratios);
        fails(folder, &["predictor", "--run", "run"], &[only, "--score measured"]);
        fails(folder, &search(&[]), &[only, "--score measured"]);
        let measured =
            ["search", "--run", "run", "--limit", "any:macs=10M", "--score", "measured", "--recalibration", "9"];
        for strategy in ["evolution", "pareto", "bayes", "random", "grid", "ppo", "gradient"] {
            let against: &[&str] = if strategy == "pareto" { &["--against", "any:macs"] } else { &[] };
            let more = [&["--strategy", strategy, "--images", "20", "--json"], against].concat();
            let out: Value = serde_json::from_str(&succeeds(folder, &[&measured[..], &more].concat())).unwrap();
            let most = out["results"][0]["evaluations"].as_u64().unwrap();
            assert!(most == count || strategy == "grid" && most <= count, "{strategy}: {most} of {count}");
        }
    }
}

#[test]
fn a_space_of_fewer_subnets_than_samples_is_measured_once() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_few_subnets(folder, "[2.0, 2.5, 3.0, 4.0]");
    let sampling = ["predictor", "--run", "run", "--recalibration", "9", "--images", "20", "--members", "1"];
    let err = warnings(folder, &sampling);
    assert!(err.contains("only 16 subnets; all of them are measured"), "{err}");
    let lines = samples(folder);
    let subnets: HashSet<&str> = lines.lines().map(|line| line.split("\"accuracy\"").next().unwrap()).collect();
    assert_eq!((lines.lines().count(), HashSet::len(&subnets)), (16, 16));
    let out = succeeds(folder, &sampling);
    assert!(out.contains("16 subnets, 3 held out") && samples(folder) == lines, "{out}");
    fails(folder, &["predictor", "--run", "run", "--curve"], &["only 16 subnets"]);
    let both = ["--members", "2", "--method", "gaussian-process"];
    misused(folder, &[&sampling[..7], &both].concat(), &["--members cannot be used with --method gaussian-process"]);
    assert!(succeeds(folder, &sampling[..7]).contains("Gaussian process: in cross-validation"));
}

#[test]
fn predictions_are_at_most_one() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    // Most subnets are right on every image; the predictor's slope leads above that.
    let high: String = samples(folder)
        .lines()
        .enumerate()
        .map(|(index, line)| match line.split_once("\"accuracy\":") {
            Some((subnet, _)) => format!("{subnet}\"accuracy\":{}}}\n", if index % 4 == 0 { 0.6 } else { 1.0 }),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(folder.join("run/predictor/samples.jsonl"), high).unwrap();
    succeeds(folder, &[SAMPLED, &["--samples", "16", "--members", "2"]].concat());
    let path = folder.join("run/predictor/predictor.safetensors");
    let found = &serde_json::from_str::<Value>(&succeeds(folder, &search(&["--verify", "5"]))).unwrap()["results"];
    let best = found[0]["top"][0]["subnet"].as_str().unwrap().parse().unwrap();
    let raw = Predictor::load(&path).unwrap().predict(&[best]).unwrap()[0];
    assert!(raw > 1.0, "{raw}");
    let scores = |list: &str| -> Vec<f64> {
        found[0][list].as_array().unwrap().iter().map(|entry| entry["score"].as_f64().unwrap()).collect()
    };
    let predicted = [found[0]["predicted_accuracy"].as_f64().unwrap()];
    for score in [scores("history"), scores("top"), predicted.to_vec()].concat() {
        assert!((0.0..=1.0).contains(&score), "{score}");
    }
    let front = ["search", "--run", "run", "--strategy", "pareto", "--against", "any:macs", "--generations", "5"];
    let out = succeeds(folder, &front);
    let predicted = |word: &str| word.parse::<f64>().ok().filter(|_| word.contains('.'));
    assert!(
        out.contains(" 100.00 ") && out.split_whitespace().filter_map(predicted).all(|percent| percent <= 100.0),
        "{out}"
    );
    let fit: Value = serde_json::from_slice(&fs::read(folder.join("run/predictor/fit.json")).unwrap()).unwrap();
    for pair in fit["pairs"].as_array().unwrap() {
        assert!((0.0..=1.0).contains(&pair["predicted"].as_f64().unwrap()), "{pair}");
    }
}

#[test]
fn commands_that_write_nothing_leave_a_run_as_it_is() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let space = SearchSpace::named("tiny").unwrap();
    let lines = (0..90).map(|i| space.sample(&mut generator(1, Stream::Sampling, &[i])));
    let lines = lines.map(|subnet| {
        let accuracy = 0.3 + 0.02 * subnet.blocks().map(|b| b.expand.value()).sum::<f64>();
        json!({"subnet": subnet.to_string(), "accuracy": accuracy}).to_string()
    });
    let lines: Vec<String> = lines.collect();
    fs::write(folder.join("run/predictor/samples.jsonl"), lines.join("\n") + "\n").unwrap();
    let state = || {
        let mut files = Vec::new();
        let mut folders = vec![folder.join("run")];
        while let Some(folder) = folders.pop() {
            let changed = folder.metadata().unwrap().modified().unwrap();
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.metadata().unwrap().modified().unwrap(), fs::read(&path).unwrap(), path));
                }
            }
            files.push((changed, Vec::new(), folder));
        }
        files.sort();
        files
    };
    let compare =
        ["search", "--run", "run", "--limit", "any:macs=0.4M", "--compare", "--seeds", "1", "--evaluations", "9"];
    let curve = ["predictor", "--run", "run", "--curve"];
    for lock in [true, false] {
        if !lock {
            fs::remove_file(folder.join("run/.lock")).unwrap();
        }
        let before = state();
        succeeds(folder, &compare);
        succeeds(folder, &curve);
        assert!(state() == before);
    }
}

#[test]
fn a_kill_between_the_files_of_a_fit_is_mended_by_the_same_command() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let read = |file: &str| fs::read(folder.join("run/predictor").join(file)).unwrap();
    let before = (read("predictor.safetensors"), read("fit.json"));
    fs::remove_file(folder.join("run/predictor/fit.json")).unwrap();
    succeeds(folder, &[SAMPLED, &["--samples", "16"]].concat());
    assert!((read("predictor.safetensors"), read("fit.json")) == before);
}

#[test]
fn a_damaged_line_of_the_samples_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::write(folder.join("run/predictor/samples.jsonl"), samples(folder) + "{\"subnet\": 3}\n").unwrap();
    fails(folder, &[SAMPLED, &["--samples", "18"]].concat(), &["run/predictor/samples.jsonl:17: ", "expected"]);
}

#[test]
fn a_missing_run_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    fails(temporary.path(), &["predictor", "--run", "nowhere"], &["nowhere"]);
}

#[test]
fn a_published_predictor_for_another_space_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let file = "run/checkpoints/supernet.safetensors";
    fails(folder, &["predictor", "--run", "run", "--import", file], &[file, "five stages"]);
}

fn search<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["search", "--run", "run", "--limit", "any:macs=0.4M", "--generations", "5", "--json"], more].concat()
}

#[test]
fn samples_are_chosen_and_the_curve_is_drawn_from_them() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "1");
    succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
    let images = ["--recalibration", "20", "--images", "20"];
    let choose = |run: &str, count: &str, by: &str| {
        let more = ["--samples", count, "--active", by];
        succeeds(folder, &[&["predictor", "--run", run], &images[..], &more].concat())
    };
    let sample = |run: &str, count: &str| choose(run, count, "improvement");
    let samples = |run: &str| std::fs::read_to_string(folder.join(run).join("predictor/samples.jsonl")).unwrap();
    let out = sample("run", "24");
    assert!(out.contains("24 subnets") && out.contains("Gaussian process") && out.contains("90 % interval"), "{out}");
    let whole = samples("run");
    // The chosen subnets are not the next random ones, and a cut file is completed with the same subnets.
    let cut: String = whole.lines().take(15).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), cut).unwrap();
    sample("run", "24");
    assert_eq!(samples("run"), whole);
    // By deviation, all but the smallest and the largest subnet are chosen.
    std::fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    choose("run", "20", "deviation");
    let by_deviation = samples("run");
    let cut: String = by_deviation.lines().take(7).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), cut).unwrap();
    choose("run", "20", "deviation");
    assert_eq!(samples("run"), by_deviation);
    let space = SearchSpace::named("tiny").unwrap();
    let extremes = [space.smallest(), space.largest()].map(|subnet| format!("\"{subnet}\""));
    assert!(by_deviation.lines().zip(&extremes).all(|(line, subnet)| line.contains(subnet)), "{by_deviation}");
    assert!(!by_deviation.lines().skip(2).all(|line| whole.contains(line)), "{whole}\n{by_deviation}");
    std::fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    succeeds(
        folder,
        &["predictor", "--run", "run", "--samples", "24", "--recalibration", "20", "--images", "20", "--members", "1"],
    );
    let random = samples("run");
    let drawn = |count: usize| whole.lines().take(count).all(|line| random.contains(line));
    assert!(drawn(10) && !drawn(24), "{whole}\n{random}");

    // A single network cannot be pessimistic; several are, each to the extent of its deviation.
    fails(folder, &search(&["--pessimism", "1"]), &["single network", "ofa predictor"]);
    let two = ["predictor", "--run", "run", "--samples", "26", "--active", "improvement", "--members", "2"];
    succeeds(folder, &[&two[..], &images].concat());
    let found =
        |more: &[&str]| serde_json::from_str::<Value>(&succeeds(folder, &search(more))).unwrap()["results"][0].clone();
    let (neutral, pessimistic) = (found(&[]), found(&["--pessimism", "3"]));
    assert_eq!((&neutral["pessimism"], pessimistic["pessimism"].as_f64()), (&Value::Null, Some(3.0)));
    let number = |result: &Value, key: &str| result[key].as_f64().unwrap();
    assert!(number(&pessimistic, "predicted_deviation") <= number(&neutral, "predicted_deviation"));
    // Scores are of the search; the accuracy beside them is corrected for the choice.
    let score = |result: &Value| number(result["history"].as_array().unwrap().last().unwrap(), "score");
    assert!(score(&pessimistic) < score(&neutral));
    assert!(number(&neutral, "predicted_accuracy") < score(&neutral));

    let lines: String = (0..120)
        .map(|i| space.sample(&mut generator(1, Stream::Sampling, &[i])))
        .map(|subnet| {
            let size: f64 = subnet.blocks().map(|b| b.expand.value()).sum();
            format!("{}\n", json!({"subnet": subnet.to_string(), "accuracy": 0.3 + 0.02 * size}))
        })
        .collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), lines).unwrap();
    let out = succeeds(folder, &["predictor", "--run", "run", "--curve"]);
    assert_eq!(out.lines().count(), 9, "{out}");
    assert!(out.contains("tau, random") && out.contains("tau, chosen"), "{out}");
    let alone = ["predictor", "--run", "run", "--curve", "--active", "improvement", "--members", "1"];
    misused(folder, &alone, &["two members"]);
}

#[test]
fn the_tau_of_true_accuracies_stands_beside_the_predictors() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let sampling = ["--samples", "20", "--recalibration", "20", "--images", "60", "--batch", "10"];
    succeeds(folder, &[&["predictor", "--run", "run", "--discard"], &sampling[..]].concat());
    // Training is so short that the order of what was measured may be chance: answers with a clear one.
    let answers = |(index, line): (usize, &str)| {
        let mut sample: Value = serde_json::from_str(line).unwrap();
        let correct: Vec<usize> = (0..6).map(|batch| 1 + index / 3 + (7 * index + 5 * batch) % 3).collect();
        sample["accuracy"] = (correct.iter().sum::<usize>() as f64 / 60.0).into();
        sample["correct"] = correct.into();
        format!("{sample}\n")
    };
    let path = folder.join("run/predictor/samples.jsonl");
    let clear: String = samples(folder).lines().enumerate().map(answers).collect();
    fs::write(path, clear).unwrap();
    let out = succeeds(folder, &[&["predictor", "--run", "run"], &sampling[..]].concat());
    assert!(out.contains("(a perfect predictor would reach about 0."), "{out}");
    let report: Value = serde_json::from_slice(&fs::read(folder.join("run/predictor/fit.json")).unwrap()).unwrap();
    let tau = report["attainable_tau"].as_f64().unwrap();
    assert!(tau > -1.0 && tau < 1.0, "{tau}");
    // What was chosen and measured is counted, too.
    for subnet in ["r32 d2,2 k5,5|5,5 e4,4|4,4", "r32 d2,2 k5,3|5,5 e4,4|4,4", "r32 d2,2 k5,3|3,5 e4,4|4,4"] {
        succeeds(folder, &["extract", "--run", "run", "--subnet", subnet, "--recalibration", "20"]);
    }
    let lines = samples(folder);
    assert!(lines.lines().count() > 20, "{lines}");
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let correct: Vec<u64> =
            line["correct"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
        assert_eq!((correct.len(), correct.iter().sum::<u64>() as f64 / 60.0), (6, line["accuracy"].as_f64().unwrap()));
        let log_likelihood = line["log_likelihood"].as_f64().unwrap();
        assert!((-10.0..0.0).contains(&log_likelihood), "{log_likelihood}");
    }
}
