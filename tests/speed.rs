//! `ofa speed` through the binary.

mod common;

use common::{changed, misused, succeeds};

#[test]
fn speed_reports_every_mode() {
    let temporary = tempfile::tempdir().unwrap();
    for mode in ["max", "elastic", "eval"] {
        let size = ["--space", "tiny", "--resolution", "16", "--batch", "4", "--steps", "2"];
        let out = succeeds(temporary.path(), &[&["speed"], &size[..], &["--mode", mode, "--json"]].concat());
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(report["images_per_second"].as_f64().unwrap() > 0.0);
        // Evaluation has no gradients.
        let has_gradients = report["gradient_megabytes"].as_f64().unwrap() > 0.0;
        assert_eq!((&report["mode"], has_gradients), (&mode.into(), mode != "eval"), "{report}");
    }
}

#[test]
fn speed_estimates_the_time_of_a_schedule_on_its_data_and_its_space() {
    let temporary = tempfile::tempdir().unwrap();
    let config = succeeds(temporary.path(), &["config", "--preset", "tiny", "--epochs", "1", "--batch", "4"]);
    let config = changed(&config, "builtin_train = 6000", "builtin_train = 120");
    let config = changed(&config, "builtin_test = 1000", "validation = 20\nbuiltin_test = 20");
    std::fs::write(temporary.path().join("c.toml"), &config).unwrap();
    let arguments = ["speed", "--steps", "1", "--config", "c.toml"];
    let out = succeeds(temporary.path(), &arguments);
    // Both measurements are of the configuration's space.
    assert!(out.contains("tiny max at 32 px, batch 4") && !out.contains("cifar-mbv3"), "{out}");
    assert!(out.contains("the schedule takes about") && out.contains("on 100 training images"), "{out}");
    let report = |more: &[&str]| -> serde_json::Value {
        let out = succeeds(temporary.path(), &[&arguments[..], &["--json"], more].concat());
        serde_json::from_str(&out).unwrap()
    };
    let own = report(&[]);
    assert_eq!((&own["training_images"], &own["classes"], &own["space"]), (&100.into(), &10.into(), &"tiny".into()));
    // 100 images in batches of 4; one epoch over all stages.
    let steps = |report: &serde_json::Value| -> u64 {
        report["schedule"].as_array().unwrap().iter().map(|stage| stage["steps"].as_u64().unwrap()).sum()
    };
    assert!((24..=28).contains(&steps(&own)), "{own}");
    let given = report(&["--images", "400", "--classes", "3"]);
    assert_eq!((&given["training_images"], &given["classes"]), (&400.into(), &3.into()));
    assert!(steps(&given) > 3 * steps(&own), "{given}");
    // As a training with this flag has it.
    let batch = report(&["--batch", "10"]);
    assert!(batch["batch"] == 10 && (8..=13).contains(&steps(&batch)), "{batch}");
    misused(temporary.path(), &[&arguments[..], &["--space", "tiny"]].concat(), &["--space", "--config"]);
}
