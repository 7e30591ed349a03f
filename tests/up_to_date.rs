//! Models that `ofa extract --search-results` leaves as they are.

mod common;

use common::{fails, finished_run, succeeds};
use ofa_supernet::files::list_folder;
use ofa_supernet::train::checkpoint::{read_supernet, write_supernet};
use std::fs;

#[test]
fn search_results_are_named_and_those_up_to_date_are_skipped() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    ["search", "models"].iter().for_each(|name| fs::remove_dir_all(folder.join("run").join(name)).unwrap());
    for limit in ["any:macs=500k", "any:macs=400k"] {
        succeeds(folder, &["search", "--run", "run", "--limit", limit, "--generations", "2"]);
    }
    let extract = ["extract", "--run", "run", "--recalibration", "20", "--no-sample", "--json", "--search-results"];
    let extracted = |more: &[&str]| -> [Vec<String>; 3] {
        let out: serde_json::Value = serde_json::from_str(&succeeds(folder, &[&extract[..], more].concat())).unwrap();
        let name = |value: &serde_json::Value| value.as_str().unwrap().rsplit('/').next().unwrap().to_string();
        let names = |key: &str, of: fn(&serde_json::Value) -> &serde_json::Value| {
            out[key].as_array().unwrap().iter().map(|entry| name(of(entry))).collect()
        };
        [
            names("models", |model| &model["model"]),
            names("up_to_date", |folder| folder),
            names("int8", |twin| &twin["model"]),
        ]
    };
    let (small, large) = ("any-macs-400k".to_string(), "any-macs-500k".to_string());
    let (one, both) = (vec![small.clone()], vec![small.clone(), large.clone()]);
    fails(folder, &[&extract[..], &["nothing"]].concat(), &["'nothing'", "any-macs-400k, any-macs-500k"]);
    assert_eq!(extracted(&[&small]), [one.clone(), vec![], vec![]]);
    assert_eq!(list_folder(&folder.join("run/models")).unwrap(), [folder.join("run/models").join(&small)]);
    let before = fs::metadata(folder.join("run/models/any-macs-400k/config.json")).unwrap().modified().unwrap();
    assert_eq!(extracted(&[]), [vec![large.clone()], one.clone(), vec![]]);
    assert_eq!(extracted(&[]), [vec![], both.clone(), vec![]]);
    let out = succeeds(folder, &["extract", "--run", "run", "--search-results", &small, "--recalibration", "20"]);
    assert!(
        out.starts_with("run/models/any-macs-400k: up to date, skipped (--overwrite extracts it again)\n"),
        "{out}"
    );
    assert_eq!(fs::metadata(folder.join("run/models/any-macs-400k/config.json")).unwrap().modified().unwrap(), before);
    // A twin that is missing is made, and is up to date from then on.
    let twin = format!("{small}-int8");
    assert_eq!(extracted(&[&small, "--int8"]), [vec![], one.clone(), vec![twin.clone()]]);
    assert_eq!(extracted(&[&small, "--int8"]), [vec![], one.clone(), vec![]]);
    // Fine-tuning that lowered the accuracy is not repeated.
    for (model, part, learning_rate) in [(&small, None, 0.005), (&twin, Some("quantisation"), 0.001)] {
        let path = folder.join("run/models").join(model).join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let place = match part {
            Some(part) => &mut config[part],
            None => &mut config,
        };
        place["tried_finetuning"] = serde_json::json!({ "epochs": 2.0, "learning_rate": learning_rate });
        fs::write(&path, config.to_string()).unwrap();
    }
    assert_eq!(extracted(&[&small, "--int8", "--finetune", "2"]), [vec![], one.clone(), vec![]]);
    // Asked for again, damaged, of other settings, or of another supernet: extracted.
    assert_eq!(extracted(&[&small, "--overwrite"]), [one.clone(), vec![], vec![]]);
    fs::write(folder.join("run/models/any-macs-400k/model.safetensors"), "damaged").unwrap();
    assert_eq!(extracted(&[]), [one.clone(), vec![large.clone()], vec![]]);
    assert_eq!(extracted(&[&small, "--dtype", "f16"]), [one.clone(), vec![], vec![]]);
    assert_eq!(extracted(&[&small]), [one.clone(), vec![], vec![]]);
    let path = folder.join("run/checkpoints/supernet.safetensors");
    let (mut state, note) = read_supernet(&path).unwrap();
    // A model that was recalibrated on other images is not that of the run's own.
    assert_eq!(extracted(&[&small, "--data", "builtin"]), [one.clone(), vec![], vec![]]);
    assert_eq!(extracted(&[&small]), [vec![], one.clone(), vec![]]);
    common::write_classes(&folder.join("images"), &note.classes, 20);
    assert_eq!(extracted(&[&small, "--data", "images"]), [one.clone(), vec![], vec![]]);
    assert_eq!(extracted(&[&small]), [one.clone(), vec![], vec![]]);
    state.values_mut().for_each(|tensor| *tensor = (&*tensor * 1.01).unwrap());
    write_supernet(&path, state, &note).unwrap();
    assert_eq!(extracted(&[]), [both, vec![], vec![]]);
}

#[test]
fn the_int8_twin_of_one_search_never_takes_the_place_of_another_searchs_model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    ["search", "models"].iter().for_each(|name| fs::remove_dir_all(folder.join("run").join(name)).unwrap());
    for (name, limit) in [("one", "any:macs=400k"), ("one-int8", "any:macs=500k")] {
        succeeds(folder, &["search", "--run", "run", "--limit", limit, "--name", name, "--generations", "2"]);
    }
    let extract = ["extract", "--run", "run", "--recalibration", "20", "--no-sample", "--search-results"];
    let extract = |more: &[&'static str]| [&extract[..], more].concat();
    let both = ["run/models/one-int8: would be an f32 model and the int8 twin of run/models/one", "ofa quantise"];
    fails(folder, &extract(&["--int8"]), &both);
    assert!(!folder.join("run/models").exists());
    succeeds(folder, &extract(&[]));
    fails(folder, &extract(&["--int8", "--overwrite"]), &both);
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&succeeds(folder, &[arguments, &["--json"]].concat())).unwrap()
    };
    // The report knows both searches by name.
    let report = json(&["report", "--run", "run"]);
    let deviations = report["models"].as_array().unwrap().iter().map(|model| model["deviation"].is_f64());
    assert_eq!(deviations.collect::<Vec<_>>(), [true, true], "{report}");
    // A twin in the folder of a search's model does not count as this model.
    fs::remove_dir_all(folder.join("run/models/one-int8")).unwrap();
    succeeds(folder, &extract(&["one", "--int8"]));
    fails(folder, &extract(&["one-int8"]), &["run/models/one-int8: this folder holds an int8 model", "--overwrite"]);
    let next = json(&["status", "run"])["next"].clone();
    assert_eq!(next[0], "ofa extract --run run --search-results one-int8 --overwrite");
}
