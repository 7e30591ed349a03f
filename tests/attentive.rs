//! An AttentiveNAS space through every command of the binary.

mod common;

use common::{changed, fails, succeeds};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A short configuration of `space` on 120 generated images.
fn configuration(folder: &Path, space: &str, name: &str) {
    let config = succeeds(folder, &["config", "--preset", "tiny", "--space", space, "--epochs", "3", "--batch", "16"]);
    let config = changed(&config, "builtin_train = 6000", "builtin_train = 120");
    let config = changed(&config, "builtin_test = 1000", "builtin_test = 20");
    let config = changed(&config, "recalibration_images = 200", "recalibration_images = 32");
    fs::write(folder.join(name), config).unwrap();
}

#[test]
fn an_attentive_space_passes_through_all_commands() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder, "attentive-tiny", "c.toml");
    succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
    let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    for stage in ["largest", "kernel", "depth-1", "width-1", "outer-1", "outer-2"] {
        assert!(metrics.contains(&format!("\"stage\":\"{stage}\"")), "{stage}");
    }

    let out = succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "4"]);
    assert!(out.contains("this"), "{out}");
    let sampling = ["predictor", "--run", "run", "--samples", "12", "--recalibration", "20", "--images", "20"];
    let out = succeeds(folder, &sampling);
    assert!(out.contains("12 subnets"), "{out}");

    for strategy in ["random", "grid", "evolution", "bayes", "ppo", "gradient"] {
        let limits = ["--limit", "this:latency=1s", "--limit", "any:macs=1.5M", "--together"];
        let search = ["search", "--run", "run", "--json", "--strategy", strategy, "--evaluations", "40"];
        let out: Value = serde_json::from_str(&succeeds(folder, &[&search[..], &limits].concat())).unwrap();
        let results = &out["results"];
        for constraint in results[0]["constraints"].as_array().unwrap() {
            let (value, limit) = (&constraint["value"], constraint["limit"].as_f64().unwrap());
            assert!(value.as_f64().unwrap() <= limit, "{strategy}: {constraint}");
        }
        // Blocks of a stage are searched together.
        let best = results[0]["best"].as_str().unwrap();
        let subnet: ofa_supernet::Subnet = best.parse().unwrap();
        assert!(subnet.stages.iter().all(|blocks| blocks.windows(2).all(|pair| pair[0] == pair[1])), "{best}");
    }
    let pareto = ["search", "--run", "run", "--strategy", "pareto", "--against", "any:macs", "--generations", "3"];
    succeeds(folder, &pareto);

    succeeds(folder, &["extract", "--run", "run", "--search-results", "--recalibration", "20"]);
    let text = "r28 w8,8,24,32,64 s0 d1,2,1 k5|3,3|5 e1|3,3|2";
    let extract = ["extract", "--run", "run", "--recalibration", "20", "--name", "mine", "--subnet"];
    succeeds(folder, &[&extract[..], &[text]].concat());
    let mixed = "r28 w8,8,24,32,64 s0 d1,2,1 k5|3,5|5 e1|3,3|2";
    fails(folder, &[&extract[..], &[mixed]].concat(), &["blocks of stage 2 differ"]);
    let wide = "r28 w8,8,20,32,64 s0 d1,2,1 k5|3,3|5 e1|3,3|2";
    fails(folder, &[&extract[..], &[wide]].concat(), &["width is 20; allowed are 16, 24"]);
    let out = succeeds(folder, &["bench", "run/models/mine", "--data", "builtin", "--json"]);
    let rows: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows["models"][0]["model"], "mine");
}

/// The space is TOML: a file with other widths trains as well, and a fault in it is named.
#[test]
fn a_file_describes_an_attentive_space() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder, "attentive-tiny", "c.toml");
    let config: toml::Table = toml::from_str(&fs::read_to_string(folder.join("c.toml")).unwrap()).unwrap();
    let space = toml::to_string(&config["space"]).unwrap();
    let other = changed(&space, "widths = [24, 32, 40]", "widths = [20, 40]");
    fs::write(folder.join("other.toml"), &other).unwrap();
    configuration(folder, "other.toml", "other-run.toml");
    succeeds(folder, &["train", "--config", "other-run.toml", "--data", "builtin", "--out", "other"]);
    succeeds(folder, &["extract", "--run", "other", "--subnet", "smallest", "--recalibration", "20"]);
    fs::write(folder.join("faulty.toml"), changed(&space, "widths = [24, 32, 40]", "widths = [24, 32]")).unwrap();
    fails(folder, &["config", "--preset", "tiny", "--space", "faulty.toml"], &["faulty.toml", "end with its channels"]);
}
