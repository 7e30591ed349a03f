//! Checkpoints on disk: which are kept, found, refused.

use super::*;
use crate::space::preset;
use candle_core::Device;

fn checkpoint(step: usize) -> Checkpoint {
    let tensor = |v: f32| HashMap::from([("w".to_string(), Tensor::new(&[v], &Device::Cpu).unwrap())]);
    Checkpoint {
        progress: Progress { step, seconds: 0.1, ..Progress::default() },
        identity: Identity {
            space: preset("tiny").unwrap(),
            classes: vec!["a".into()],
            images: 9,
            data: None,
            config: serde_json::json!({"seed": 1, "log_every": 2, "stages": ["first", "second"]}),
        },
        weights: tensor(1.0),
        momentum: tensor(2.0),
        average: HashMap::new(),
        teacher: tensor(4.0),
        teacher_space: Some(preset("cifar-mbv3").unwrap()),
        earlier: Vec::new(),
    }
}

#[test]
fn keeps_the_last_and_falls_back_from_a_damaged_one() {
    let run = tempfile::tempdir().unwrap();
    let folder = Folder::of_run(run.path(), 2);
    assert!(folder.latest().unwrap().is_none());
    for step in [1, 5, 20] {
        folder.save(&checkpoint(step)).unwrap();
    }
    let steps: Vec<usize> = folder.list().unwrap().iter().map(|f| f.0).collect();
    assert_eq!(steps, [5, 20]);
    let Latest { checkpoint: found, path, damaged } = folder.latest().unwrap().unwrap();
    assert_eq!(found.progress, checkpoint(20).progress);
    assert_eq!(found.identity, checkpoint(20).identity);
    assert_eq!(found.teacher["w"].to_vec1::<f32>().unwrap(), [4.0]);
    assert!(found.average.is_empty() && damaged.is_empty());

    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
    let Latest { checkpoint: found, damaged, .. } = folder.latest().unwrap().unwrap();
    assert_eq!(found.progress.step, 5);
    assert!(damaged[0].contains("step-00000020"), "{damaged:?}");
    // Going on from step 5 must not count the damaged later one among those kept.
    fs::write(run.path().join("checkpoints/.step-00000020.safetensors.7.tmp"), b"cut").unwrap();
    folder.remove_temporaries();
    Folder::of_run(run.path(), 1).save(&checkpoint(7)).unwrap();
    let names = || {
        let entries = fs::read_dir(run.path().join("checkpoints")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["step-00000007.safetensors"]);
    // The best is kept besides the newest.
    let mut later = checkpoint(8);
    later.progress.best = Some(Best { step: 7, accuracy: 0.5 });
    Folder::of_run(run.path(), 1).save(&later).unwrap();
    later.progress.step = 9;
    Folder::of_run(run.path(), 1).save(&later).unwrap();
    assert_eq!(names(), ["step-00000007.safetensors", "step-00000009.safetensors"]);
    for (_, path) in folder.list().unwrap() {
        fs::write(path, b"x").unwrap();
    }
    let error = folder.latest().unwrap_err().to_string();
    assert!(error.contains("no checkpoint can be read"), "{error}");
}

#[test]
fn resuming_with_other_settings_names_the_difference() {
    let saved = checkpoint(1).identity;
    let path = Path::new("c");
    let mut other = saved.clone();
    other.config["log_every"] = 9.into();
    let begun = |stage, entered| Progress { stage, entered, ..Progress::default() };
    other.check(&saved, &begun(1, true), path).unwrap();
    other.config["stages"] = serde_json::json!(["first", "another", "more"]);
    other.check(&saved, &begun(1, false), path).unwrap();
    let error = other.check(&saved, &begun(2, false), path).unwrap_err().to_string();
    assert!(error.contains("stage 2 differs, but it has begun;"), "{error}");
    other.config["seed"] = 2.into();
    let start = Progress::default();
    assert!(other.check(&saved, &start, path).unwrap_err().to_string().contains("differs in seed"));
    let other = Identity { images: 8, ..saved.clone() };
    assert!(other.check(&saved, &start, path).unwrap_err().to_string().contains("9 images"));
    let other = Identity { space: preset("cifar-mbv3").unwrap(), ..saved.clone() };
    assert!(other.check(&saved, &start, path).unwrap_err().to_string().contains("'cifar-mbv3'"));
}

/// The moving average becomes the weights with the last stage, and only then.
#[test]
fn one_schedule_neither_ends_early_nor_goes_on_after_its_end() {
    let mut saved = checkpoint(1).identity;
    saved.config["schedule"] = 1.into();
    let with = |stages: &[&str]| {
        let mut other = saved.clone();
        other.config["stages"] = serde_json::json!(stages);
        other
    };
    let at = |stage, entered| Progress { stage, entered, ..Progress::default() };
    let check = |stages: &[&str], progress: Progress| {
        with(stages).check(&saved, &progress, Path::new("c")).map_err(|error| error.to_string())
    };
    check(&["first", "second"], at(2, false)).unwrap();
    check(&["first", "second", "third"], at(1, true)).unwrap();
    check(&["first"], at(0, true)).unwrap();
    let error = check(&["first", "second", "third"], at(2, false)).unwrap_err();
    assert!(error.contains("[train.schedule] has ended with the last"), "{error}");
    let error = check(&["first"], at(1, false)).unwrap_err();
    assert!(error.contains("stage 2 is missing"), "{error}");
}

#[test]
fn a_checkpoint_of_another_format_is_refused_and_not_taken_for_damaged() {
    let run = tempfile::tempdir().unwrap();
    let folder = Folder::of_run(run.path(), 3);
    folder.save(&checkpoint(1)).unwrap();
    let newer = checkpoint(2);
    let note = Note {
        format: 1,
        teacher_space: None,
        earlier: Vec::new(),
        progress: newer.progress.clone(),
        identity: newer.identity.clone(),
    };
    tensor_file::write(&folder.checkpoint_path(2), &BTreeMap::new(), &note).unwrap();
    let error = folder.latest().unwrap_err().to_string();
    assert!(error.contains("step-00000002") && error.contains("format 1") && error.contains("format 2"), "{error}");
    // Whatever else a later format has in its note.
    #[derive(serde::Serialize)]
    struct Later {
        format: u32,
    }
    tensor_file::write(&folder.checkpoint_path(2), &BTreeMap::new(), &Later { format: 3 }).unwrap();
    assert!(folder.latest().unwrap_err().to_string().contains("format 3"));
}
