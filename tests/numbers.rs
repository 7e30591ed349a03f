//! Numbers on the command line that no computation can use.

mod common;

use common::{fails, misused, ofa, succeeds};

#[test]
fn every_numeric_option_refuses_what_is_out_of_range() {
    let temporary = tempfile::tempdir().unwrap();
    let options: &[(&[&str], &[&str], &[&str])] = &[
        (&["bench", "m"], &["--batch", "--model-threads", "--data-seed"], &[]),
        (&["speed"], &["--batch", "--classes", "--steps", "--resolution", "--images"], &["--bandwidth", "--latency"]),
        (&["profile"], &["--model-threads", "--batch", "--rounds", "--check", "--seed"], &[]),
        (&["predictor"], &["--samples", "--recalibration", "--images", "--batch", "--seed", "--members"], &[]),
        (
            &["search", "--limit", "any:macs=1M"],
            &[
                "--evaluations",
                "--population",
                "--generations",
                "--islands",
                "--patience",
                "--local-search",
                "--initial",
                "--batch",
                "--seed",
                "--verify",
                "--recalibration",
                "--images",
            ],
            &[
                "--parent-ratio",
                "--mutation-ratio",
                "--mutation-probability",
                "--resolution-mutation-probability",
                "--learning-rate",
                "--pessimism",
                "--exponent",
            ],
        ),
        (&["search", "--limit", "any:macs=1M", "--compare"], &["--seeds"], &[]),
        (&["extract"], &["--recalibration"], &["--finetune", "--finetune-rate"]),
        (&["quantise", "m", "--data", "d"], &["--images", "--weight-bits", "--data-seed"], &[]),
        (&["export", "m", "--data", "d"], &["--calibration"], &[]),
        (&["import", "f", "--network", "n"], &["--resolution"], &[]),
        (
            &["import", "f", "--space", "tiny", "--data", "d"],
            &["--resolutions", "--validation"],
            &["--batch-norm-epsilon"],
        ),
        (&["train"], &["--validation", "--batch", "--seed", "--skip-nonfinite"], &["--epochs"]),
        (&["config"], &["--validation", "--batch", "--seed"], &["--epochs"]),
        (&["tune"], &["--trials", "--batch", "--seed"], &["--epochs", "--trial-epochs"]),
        (&["quickstart"], &["--images", "--samples", "--seed"], &["--epochs"]),
        (&["speed"], &["--threads"], &[]),
    ];
    for (command, whole, real) in options {
        for option in *whole {
            for value in ["18446744073709551615", "18446744073709551616", "99999999999999999999", "-1", "1.5", "nan"] {
                misused(
                    temporary.path(),
                    &[command, &[*option, value][..]].concat(),
                    &[option, "expected a whole number from "],
                );
            }
        }
        for option in *real {
            for value in ["nan", "inf", "-1e300", "1e300"] {
                misused(temporary.path(), &[command, &[*option, value][..]].concat(), &[option, "expected a number "]);
            }
        }
    }
    for (arguments, option) in [
        (["speed", "--steps", "0"], "--steps"),
        (["search", "--evaluations", "0"], "--evaluations"),
        (["speed", "--batch", "0"], "--batch"),
        (["speed", "--classes", "1"], "--classes"),
        (["speed", "--threads", "0"], "--threads"),
        (["tune", "--trials", "0"], "--trials"),
        (["train", "--epochs", "0"], "--epochs"),
        (["extract", "--finetune-rate", "0"], "--finetune-rate"),
        (["profile", "--rounds", "0"], "--rounds"),
    ] {
        misused(temporary.path(), &arguments, &[option, "expected a"]);
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is made");
}

/// A batch that no machine's memory holds; the message names a batch that fits.
#[test]
#[cfg(target_os = "linux")]
fn what_the_memory_cannot_hold_is_refused_before_it_is_taken() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let speed = ["speed", "--space", "mbv3-w1.0", "--resolution", "1024", "--batch", "65536"];
    for mode in ["max", "elastic", "eval"] {
        fails(folder, &[&speed[..], &["--mode", mode]].concat(), &["65536 images", "of this machine", "--batch "]);
    }
}

#[test]
fn more_threads_than_cores_are_hinted_at() {
    let temporary = tempfile::tempdir().unwrap();
    let speed = ["speed", "--space", "tiny", "--batch", "2", "--steps", "1", "--threads"];
    let err = |threads: &str| {
        let output = ofa(temporary.path(), &[&speed[..], &[threads]].concat());
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let many = (std::thread::available_parallelism().unwrap().get() + 1).to_string();
    assert!(err(&many).contains(&format!("hint: --threads {many} on ")), "{}", err(&many));
    assert!(!err("1").contains("hint"));
    succeeds(temporary.path(), &["config", "--preset", "tiny", "--seed", "9223372036854775807"]);
}

/// An option that would have no effect is refused instead of ignored.
#[test]
fn options_that_belong_to_another_one_are_not_taken_without_it() {
    let temporary = tempfile::tempdir().unwrap();
    for (arguments, missing) in [
        (&["bench", "model", "--data-seed", "1"][..], "--data <DATA>"),
        (&["extract", "--subnet", "smallest", "--finetune-rate", "0.1"], "--finetune <FINETUNE>"),
        (&["speed", "--images", "100"], "--config <CONFIG>"),
        (&["speed", "--bandwidth", "2"], "--ranks-model"),
        (&["predictor", "--curve", "--samples", "20"], "'--curve' cannot be used with '--samples"),
        (&["profile", "--classes", "7"], "--space <SPACE>"),
        (&["profile", "--layers", "--rounds", "3"], "--rounds <ROUNDS>"),
        (&["profile", "--layers", "--on", "ssh:board"], "--on"),
        (&["config", "--keys", "--epochs", "3"], "--epochs <EPOCHS>"),
        (&["search", "--limit", "any:macs=1M", "--compare", "--pessimism", "1"], "--pessimism"),
    ] {
        let output = ofa(temporary.path(), arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && err.contains(missing), "{arguments:?}: {err}");
    }
    let search = ["search", "--limit", "any:macs=1M"];
    for (arguments, expected) in [
        (&["--strategy", "pareto"][..], "--strategy pareto needs --against"),
        (&["--against", "any:macs"], "--against needs --strategy pareto"),
        (&["--score", "measured", "--verify", "3"], "--verify cannot be used with --score measured"),
        (&["--score", "measured", "--pessimism", "1"], "--pessimism cannot be used with --score measured"),
        (&["--data", "builtin"], "--data needs --score measured or --verify"),
        (&["--skip-bad"], "--skip-bad needs --score measured or --verify"),
        (&["--images", "9"], "--images needs --score measured or --verify"),
        (&["--recalibration", "9"], "--recalibration needs --score measured or --verify"),
    ] {
        misused(temporary.path(), &[&search[..], arguments].concat(), &[expected]);
    }
    let active = ["predictor", "--active", "improvement", "--members", "1"];
    misused(temporary.path(), &active, &["--active improvement cannot be used with --members 1", "two members"]);
    for setting in [["--batch", "9"], ["--from", "x"], ["--teacher", "x"], ["--subnet", "largest"], ["--hours", "1"]] {
        misused(temporary.path(), &[&["train", "--resume"], &setting[..]].concat(), &["--resume", setting[0]]);
    }
}
