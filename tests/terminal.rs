//! What commands show: JSON, `-q`, `-v`, colours, widths, progress on a terminal and in a log.

mod common;
#[cfg(target_os = "linux")]
#[path = "common/pty.rs"]
mod pty;

use common::{
    QUICKSTART, command, finished_run, misused, ofa, published_supernet, small_configuration, succeeds, write_images,
};
use serde_json::Value;
use std::path::Path;

/// A folder with the finished quickstart `run`, a configuration, an image, and files to import.
fn prepared() -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "0.6");
    finished_run(folder);
    write_images(&folder.join("pictures"), 1, 90);
    published_supernet(folder);
    std::fs::write(folder.join("subnets.csv"), "subnet\n\"r24 d1,2 k5|3,5 e2|4,3\"\n").unwrap();
    std::fs::write(folder.join("times.csv"), succeeds(folder, &["profile", "--run", "run", "--layers"])).unwrap();
    temporary
}

/// A command line of every command, with keys of its object; all can be repeated.
const EVERY_COMMAND: &[(&[&str], &[&str])] = &[
    (&["config", "--preset", "tiny"], &["data", "space", "train"]),
    (&["config", "--keys"], &["keys"]),
    (&["train", "--config", "c.toml", "--out", "OUT"], &["run", "supernet", "steps", "accuracies"]),
    (
        &["tune", "--config", "c.toml", "--trials", "1", "--trial-epochs", "0.2", "--out", "OUT"],
        &["trials", "best", "config"],
    ),
    (&["import", "net.safetensors", "--space", "tiny", "--out", "OUT"], &["run", "supernet", "space", "classes"]),
    (&["speed", "--space", "tiny", "--resolution", "16", "--batch", "4", "--steps", "1"], &["images_per_second"]),
    (&["profile", "--run", "run", "--name", "other", "--rounds", "1", "--check", "2"], &["device", "file", "check"]),
    (&["profile", "--run", "run", "--layers"], &["csv"]),
    (&["predictor", "--run", "run", "--samples", "16", "--recalibration", "300"], &["predictor", "fit"]),
    (&["predictor", "--run", "run", "--predict", "subnets.csv"], &["predictions"]),
    (&["search", "--run", "run", "--limit", "any:macs=500k", "--generations", "2"], &["results", "judgements"]),
    (&["search", "--run", "run", "--at-least", "accuracy=5%", "--minimise", "any:macs"], &["results", "judgements"]),
    (
        &["search", "--run", "run", "--limit", "any:macs=500k", "--compare", "--seeds", "1", "--evaluations", "20"],
        &["comparisons"],
    ),
    (&["extract", "--run", "run", "--subnet", "smallest"], &["models", "up_to_date", "int8"]),
    (&["bench", "run/models/smallest"], &["models"]),
    (&["quantise", "run/models/smallest", "--data", "builtin", "--images", "32"], &["models"]),
    (&["export", "run/models/smallest"], &["files"]),
    (&["report", "--run", "run"], &["run", "models", "training"]),
    (&["status", "run"], &["run", "state", "training", "checkpoints", "models", "next"]),
    (&["predict", "run/models/smallest", "pictures/0.png"], &["images"]),
    (&["completions", "bash"], &["shell", "script"]),
    (&["man", "--out", "OUT"], &["pages"]),
    (&["quickstart", "--out", "OUT", "--epochs", "1", "--images", "200", "--samples", "10"], &["run", "fit", "models"]),
];

/// The command lines with folders of their own in place of `OUT`.
fn command_lines(session: &str) -> Vec<(Vec<String>, &'static [&'static str])> {
    let out = |index: usize, word: &str| word.replace("OUT", &format!("{session}-{index}"));
    let line = |(index, (words, keys)): (usize, &(&[&str], &'static [&'static str]))| {
        (words.iter().map(|word| out(index, word)).collect(), *keys)
    };
    EVERY_COMMAND.iter().enumerate().map(line).collect()
}

fn run(folder: &Path, words: &[String], more: &[&str]) -> (String, String) {
    let arguments: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let output = ofa(folder, &arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_command_prints_one_object_with_json() {
    let temporary = prepared();
    let folder = temporary.path();
    // A new command needs a line in the table above.
    let help = succeeds(folder, &["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let named = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in named.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        assert!(EVERY_COMMAND.iter().any(|(words, _)| words[0] == name), "{name}");
    }
    let page = include_str!("../docs/terminal.md");
    for (words, keys) in command_lines("json") {
        let (out, err) = run(folder, &words, &["--json"]);
        let value: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words:?}: {error}: {out}"));
        assert!(value.is_object() && keys.iter().all(|key| value.get(key).is_some()), "{words:?}: {out}");
        assert!(!err.contains("{\n"), "{words:?}: {err}");
        let start = format!("| `{}` | ", words[0]);
        let row = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no row {start}"));
        for key in value.as_object().unwrap().keys() {
            assert!(row.contains(&format!("`{key}`")), "`{key}` is not in docs/terminal.md: {row}");
        }
    }
    let (out, _) = run(folder, &["bench".into(), "run/models/smallest".into()], &["--json", "-q"]);
    assert!(serde_json::from_str::<Value>(&out).unwrap()["models"][0]["latencies"].is_array());
    // An error is an object too, and stays a line on standard error.
    let output = ofa(folder, &["bench", "nowhere", "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(format!("error: {}\n", value["error"].as_str().unwrap()), err);
    assert_eq!(output.status.code(), Some(1));
    misused(folder, &["bench", "run/models/smallest", "--json", "--csv"], &["--csv"]);
}

#[test]
fn quiet_commands_show_results_only_and_verbose_ones_more() {
    let temporary = prepared();
    let folder = temporary.path();
    for (words, _) in command_lines("quiet") {
        let (out, err) = run(folder, &words, &["-q"]);
        assert!(err.lines().all(|line| line.starts_with("warning: ")), "{words:?}: {err}");
        assert!(!out.is_empty() && !out.lines().any(|line| line.starts_with("Next: ")), "{words:?}: {out}");
    }
    for (words, _) in command_lines("verbose") {
        let (_, err) = run(folder, &words, &["-v"]);
        let lines: Vec<&str> = err.lines().collect();
        assert!(lines[0].starts_with(&format!("ofa {}", env!("CARGO_PKG_VERSION"))), "{words:?}: {err}");
        assert!(lines[0].contains(" thread") && lines.last().unwrap().starts_with("took "), "{words:?}: {err}");
    }
    misused(folder, &["status", "run", "-q", "-v"], &["cannot be used with"]);
}

#[test]
fn tables_fit_the_columns_and_name_what_is_hidden() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let bench = |columns: &str| {
        let output = command(folder, &["bench", "run/models/smallest", "run/models/largest"])
            .env("COLUMNS", columns)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let names =
        |line: &str| line.split("  ").map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).count();
    for (columns, fewest) in [("80", 5), ("120", 1), ("300", 0)] {
        let out = bench(columns);
        let lines: Vec<&str> = out.lines().collect();
        let most: usize = columns.parse().unwrap();
        assert!(lines[..3].iter().all(|line| line.chars().count() <= most), "{out}");
        assert!(lines[0].contains("top-1") && lines[0].contains("p50 ms"), "{out}");
        if fewest == 0 {
            assert_eq!((lines.len(), names(lines[0])), (3, 13), "{out}");
        } else {
            let start = format!("hidden, as {columns} columns are too few: ");
            let rest = lines[3].strip_prefix(&start).unwrap_or_else(|| panic!("{out}"));
            let said = rest.strip_suffix(" (--json prints all)").unwrap().split(", ").count();
            assert!(said >= fewest && names(lines[0]) == 13 - said, "{out}");
        }
    }
    // Without a terminal and without COLUMNS nothing is hidden.
    assert_eq!(succeeds(folder, &["bench", "run/models/smallest"]).lines().count(), 2);
}

#[test]
fn help_wraps_at_words() {
    let temporary = tempfile::tempdir().unwrap();
    for columns in [80, 120] {
        for name in ["train", "search", "profile"] {
            let help =
                command(temporary.path(), &[name, "--help"]).env("COLUMNS", columns.to_string()).output().unwrap();
            let help = String::from_utf8(help.stdout).unwrap();
            assert!(help.lines().all(|line| line.chars().count() <= columns), "{help}");
            let wide = command(temporary.path(), &[name, "--help"]).env("COLUMNS", "60").output().unwrap();
            let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
            // Words stay whole.
            assert_eq!(words(&help), words(&String::from_utf8(wide.stdout).unwrap()), "{name}");
        }
    }
}

#[test]
fn a_log_gets_lines_of_progress() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "2");
    let log = |seconds: &str, more: &[&str], out: &str| {
        let arguments = [&["train", "--config", "c.toml", "--out", out], more].concat();
        let output = command(folder, &arguments).env("OFA_PROGRESS_SECONDS", seconds).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let err = log("0", &[], "often");
    let lines: Vec<&str> = err.lines().filter(|line| line.starts_with("training: ")).collect();
    assert!(lines.len() > 3 && !err.contains('\x1b'), "{err}");
    // One for each step but the last.
    let step = |line: &&str| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap();
    assert_eq!(lines.iter().map(step).collect::<Vec<_>>(), (1..=lines.len()).collect::<Vec<_>>());
    let line = lines[lines.len() - 1];
    for part in [" of ", " steps (", " %), ", " images/s, ", " left, ", " epoch ", "loss ", "accuracy ", "validation "]
    {
        assert!(line.contains(part), "'{part}' is not in: {line}");
    }
    assert!(!log("3600", &[], "rarely").contains("training: "));
    assert!(!log("0", &["-q"], "quiet").contains("training: "));
}

#[test]
fn stages_of_the_largest_subnet_show_only_its_accuracy() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "2");
    let output = ofa(folder, &["train", "--config", "c.toml", "--out", "run"]);
    let err = String::from_utf8(output.stderr).unwrap();
    let validations: Vec<&str> = err.lines().filter(|line| line.contains(": validation ")).collect();
    let shown = |line: &str| ["smallest", "middle", "largest"].map(|name| line.contains(&format!("{name} ")));
    assert_eq!(shown(validations[0].split(": validation").nth(1).unwrap()), [false, false, true], "{err}");
    assert!(validations.len() > 1 && validations[1..].iter().all(|line| shown(line) == [true; 3]), "{err}");
}

#[cfg(target_os = "linux")]
mod in_a_terminal {
    use super::*;
    use pty::{Screen, in_terminal};

    #[test]
    fn bars_fit_and_leave_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        small_configuration(folder, "c.toml", "4");
        for columns in [80, 120] {
            let out = format!("run-{columns}");
            let bytes = in_terminal(folder, &["train", "--config", "c.toml", "--out", &out], columns, &[]);
            let screen = Screen::of(&bytes, columns);
            let text = screen.text();
            assert!(screen.bars > 0, "no bar was drawn: {bytes}");
            assert!(!text.iter().any(|line| line.contains(['█', '░']) || line.contains(" left")), "{text:?}");
            // The notes stand one below the other, as in a log.
            let stages: Vec<&String> = text.iter().filter(|line| line.starts_with("stage ")).collect();
            assert_eq!(stages.len(), 5, "{text:?}");
            assert!(text.iter().any(|line| line.starts_with("Next: ofa profile")), "{text:?}");
            let drawn = bytes.split(['\r', '\n']).filter(|part| part.contains('█'));
            for line in drawn {
                // indicatif fills the line with spaces.
                let width = Screen::of(line.trim_end(), 1000).widest;
                assert!(width < columns, "{width} columns of {columns}: {line:?}");
            }
        }
        let bytes = in_terminal(folder, &[&["quickstart", "--out", "quickstart"], QUICKSTART].concat(), 80, &[]);
        let text = Screen::of(&bytes, 80).text();
        assert!(!text.iter().any(|line| line.contains(['█', '░'])), "{text:?}");
        let tables = text.iter().filter(|line| line.starts_with("smallest  ") || line.starts_with("model  "));
        assert_eq!(tables.count(), 3, "{text:?}");
    }

    #[test]
    fn colours_are_for_terminals_without_no_color() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        finished_run(folder);
        let bench = ["bench", "run/models/smallest"];
        let coloured = in_terminal(folder, &bench, 120, &[]);
        assert!(coloured.contains("\x1b[36m\x1b[1mmodel") || coloured.contains("\x1b[1m\x1b[36mmodel"), "{coloured:?}");
        let wrong = ["bench", "nowhere"];
        let error = in_terminal(folder, &wrong, 120, &[]);
        assert!(
            error.contains("\x1b[31m\x1b[1merror:\x1b[0m ") || error.contains("\x1b[1m\x1b[31merror:"),
            "{error:?}"
        );
        for arguments in [&bench[..], &wrong] {
            let plain = in_terminal(folder, arguments, 120, &[("NO_COLOR", "1")]);
            assert!(!plain.contains("m\x1b[") && !plain.contains("[36m") && !plain.contains("[31m"), "{plain:?}");
            let piped = ofa(folder, arguments);
            assert!(![piped.stdout, piped.stderr].concat().contains(&0x1b));
        }
    }
}
