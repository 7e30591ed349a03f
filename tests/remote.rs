//! Work on another machine, through the binary. Scripts stand in for `ssh` and `adb`; the test against a real server is
//! ignored unless the gate starts one.
#![cfg(unix)]

mod common;

use common::{fails, misused, ofa, succeeds};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A device's login: it greets, and runs the last argument.
const LOGIN: &str = "for last; do :; done\necho Welcome to the board\nmkdir -p there\nexport TMPDIR=$PWD/there\n";

/// Writes a stand-in for `ssh` whose machine has its own home; returns the value of `--ssh`.
fn stand_in(folder: &Path, name: &str, script: &str) -> String {
    fs::write(folder.join(name), script).unwrap();
    format!("sh {}", folder.join(name).display())
}

const PROFILE: &[&str] =
    &["profile", "--space", "tiny", "--classes", "10", "--run", "r", "--rounds", "2", "--check", "3", "--name"];

/// A short profile of the device `name`.
fn profile<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [PROFILE, &[name], more].concat()
}

/// What is left on the machine.
fn left(folder: &Path) -> usize {
    fs::read_dir(folder.join("there")).unwrap().count()
}

#[test]
fn a_space_is_profiled_without_a_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    succeeds(folder, &profile("board", &[]));
    let out = succeeds(folder, &["--version"]);
    assert!(out.contains("instruction set: ") && out.contains("commit: ") && out.lines().count() == 5, "{out}");
    let here = fs::read_to_string(folder.join("r/devices/board.json")).unwrap();
    assert!(here.contains("\"classes\": 10"), "{here}");
    let config = succeeds(folder, &["config", "--preset", "tiny"]);
    fs::write(folder.join("c.toml"), config).unwrap();
    succeeds(
        folder,
        &["profile", "--config", "c.toml", "--classes", "10", "--run", "r2", "--rounds", "2", "--check", "3"],
    );
    assert!(folder.join("r2/devices/this.json").exists());
    fails(folder, &["profile", "--space", "nothing", "--run", "r3"], &["no preset is named 'nothing'"]);
    misused(folder, &["profile", "--space", "tiny", "--config", "c.toml"], &["cannot be used with"]);
}

#[test]
fn times_from_elsewhere_are_a_profile() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    common::finished_run(folder);
    let table = succeeds(folder, &["profile", "--run", "run", "--layers"]);
    fs::write(folder.join("t.csv"), table.replace(",\n", ",0.25\n")).unwrap();
    let out = succeeds(folder, &["profile", "--run", "run", "--name", "own", "--import", "t.csv"]);
    assert!(out.contains("device 'own'"), "{out}");
    succeeds(folder, &["search", "--run", "run", "--limit", "own:latency=3ms", "--generations", "3"]);
    fs::write(folder.join("t.csv"), table).unwrap();
    fails(folder, &["profile", "--run", "run", "--name", "own", "--import", "t.csv"], &["t.csv:2", "is missing"]);
    fails(folder, &["profile", "--run", "run", "--import", "t.csv", "a.yaml"], &["not both"]);
}

#[test]
fn a_run_says_its_space_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    common::finished_run(folder);
    fails(folder, &["profile", "--run", "run", "--space", "tiny"], &["config.toml", "space of its own"]);
}

#[test]
fn another_machine_is_profiled_and_left_clean() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let ssh = stand_in(folder, "ssh.sh", &format!("echo \"$@\" >> log\n{LOGIN}exec sh -c \"$last\"\n"));
    let out = succeeds(folder, &profile("clean", &["--on", "ssh:pi@clean:2222", "--ssh", &ssh, "--cores", "0"]));
    assert!(out.contains("device 'clean'") && out.contains("error on 3 random subnets"), "{out}");
    let profile = fs::read_to_string(folder.join("r/devices/clean.json")).unwrap();
    assert!(profile.contains("\"name\": \"clean\""), "{profile}");
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(
        log.contains("-T -p 2222 pi@clean sh -c") && log.contains("taskset 1 ") && log.contains("there/ofa-clean-"),
        "{log}"
    );
    assert_eq!(left(folder), 0);
}

#[test]
fn a_lost_connection_is_taken_up_again() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // The first connection that measures ends after its first line of progress.
    let ssh = stand_in(
        folder,
        "ssh.sh",
        &format!(
            "{LOGIN}case \"$last\" in *--progress-lines*) if ! test -f lost; then touch lost; sh -c \"$last\" | \
             sed '/^progress/q'; exit 255; fi;; esac\nexec sh -c \"$last\"\n"
        ),
    );
    let arguments = profile("far", &["--on", "ssh:far", "--ssh", &ssh]);
    let output = ofa(folder, &arguments);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && err.contains("ssh:far: the connection was lost"), "{err}");
    assert!(folder.join("r/devices/far.json").exists());
    assert_eq!(left(folder), 0);
}

#[test]
fn a_program_ends_there_when_its_connection_ends() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // The first connection that measures ends while its program runs. The second waits for the end of that program in
    // place of starting another one, which would end it first, and says that its own has failed.
    let ssh = stand_in(
        folder,
        "ssh.sh",
        &format!(
            "{LOGIN}case \"$last\" in *--progress-lines*) if ! test -f first; then\n\
             exec 4<&0\nsh -c \"$last\" <&4 >/dev/null 2>&1 &\n\
             until test -s first || ! kill -0 $!; do sleep 1; cp there/ofa-*/pid first; done\nexit 255\nfi\n\
             for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $(cat first) || break; sleep 1; done\n\
             kill -KILL $(cat first) && touch alive\n\
             printf 'ofa-remote-begin\\n\\nofa-remote-end 3\\n'\nexit 0;; esac\nexec sh -c \"$last\"\n"
        ),
    );
    let endless = profile("far", &["--on", "ssh:far", "--ssh", &ssh]);
    let endless: Vec<&str> = endless.into_iter().map(|word| if word == "2" { "100000" } else { word }).collect();
    fails(folder, &endless, &["the connection was lost", "failed there with exit code 3"]);
    assert!(fs::metadata(folder.join("first")).unwrap().len() > 1 && !folder.join("alive").exists());
}

#[test]
fn what_goes_wrong_there_is_one_sentence_here() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let on = |ssh: &str, more: &[&str]| {
        let mut arguments = profile("board", &["--on", "ssh:board", "--ssh"]);
        arguments.push(ssh);
        arguments.extend(more);
        arguments.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let fails_with = |ssh: &str, more: &[&str], parts: &[&str]| {
        let arguments = on(ssh, more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        fails(folder, &arguments, parts);
        assert!(!folder.join("r/devices/board.json").exists());
    };
    let refused =
        stand_in(folder, "refused.sh", "echo 'ssh: connect to host board port 22: Connection refused' >&2; exit 255\n");
    fails_with(&refused, &[], &["ssh:board: no connection: ssh: connect to host board port 22", "try it with `sh"]);
    fails_with("no-such-ssh", &[], &["cannot start `no-such-ssh`"]);
    let other = "mkdir -p bin\nprintf '#!/bin/sh\\necho sparc\\n' > bin/uname\nchmod +x bin/uname\nexport PATH=$PWD/bin:$PATH\n";
    let arm = stand_in(folder, "arm.sh", &format!("{LOGIN}{other}exec sh -c \"$last\"\n"));
    fails_with(&arm, &[], &["the machine is sparc", "--program"]);
    let login = stand_in(folder, "login.sh", &format!("{LOGIN}exec sh -c \"$last\"\n"));
    fs::write(folder.join("notes.txt"), "no program").unwrap();
    fails_with(&login, &["--program", "notes.txt"], &["notes.txt: this is no program"]);
    fails_with(&login, &["--run-with", "no-such-emulator"], &["failed there with exit code 127"]);
    fails_with(&login, &["--cores", "9-1"], &["--cores 9-1"]);
    misused(folder, &["profile", "--ssh", "x"], &["required"]);
}

/// Writes a stand-in for `adb`, whose phone has its folder in `data`; returns the value of `--adb`.
fn phone(folder: &Path) -> String {
    let data = folder.join("data");
    let adb = format!(
        "echo \"$@\" >> log\nshift 2\ncase $1 in\npush) exec cp \"$2\" \"$(echo \"$3\" | sed 's|/data/local/tmp|{data}|')\";;\n\
         shell) PATH={bin}:$PATH; exec sh -c \"$(echo \"$2\" | sed 's|/data/local/tmp|{data}|g')\";;\nesac\n",
        data = data.display(),
        bin = folder.join("bin").display()
    );
    // The phone's own commands.
    fs::create_dir_all(folder.join("bin")).unwrap();
    stand_in(folder, "bin/cmd", &format!("#!/bin/sh\necho \"$@\" >> {}\n", folder.join("power").display()));
    fs::set_permissions(folder.join("bin/cmd"), fs::Permissions::from_mode(0o755)).unwrap();
    stand_in(folder, "adb.sh", &adb)
}

#[test]
fn a_phone_is_reached_by_these_commands() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let adb = phone(folder);
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    let is_empty = || fs::read_dir(folder.join("data")).unwrap().next().is_none();
    succeeds(folder, &profile("phone", &["--on", "adb:1a2b", "--adb", &adb, "--cores", "0"]));
    let of_profile = log();
    assert!(
        of_profile.contains("-s 1a2b push ")
            && of_profile.contains("-s 1a2b shell sh -c ")
            && of_profile.contains("dumpsys thermalservice")
            && of_profile.contains("set-fixed-performance-mode-enabled $1")
            && of_profile.contains("taskset 1 "),
        "{of_profile}"
    );
    assert!(folder.join("r/devices/phone.json").exists() && is_empty());
    let modes = ["true", "false"].map(|mode| format!("power set-fixed-performance-mode-enabled {mode}\n")).concat();
    assert_eq!(fs::read_to_string(folder.join("power")).unwrap(), modes, "the clock is free again");
    // An extracted model is measured in the same way.
    common::finished_run(folder);
    let bench = ["bench", "run/models/smallest", "--on", "adb:1a2b", "--adb", &adb, "--cores", "0", "--json"];
    let rows: serde_json::Value = serde_json::from_str(&succeeds(folder, &bench)).unwrap();
    assert!(rows["models"][0]["latencies"][0]["ms"]["p50"].as_f64().unwrap() > 0.0, "{rows}");
    let log = log();
    let of_bench = &log[of_profile.len()..];
    assert!(
        of_bench.contains("-s 1a2b push ") && of_bench.contains("taskset 1 ") && of_bench.contains("--model-threads 1"),
        "{of_bench}"
    );
    assert!(is_empty());
}

#[test]
fn models_are_measured_on_another_machine_and_their_accuracy_here() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    common::finished_run(folder);
    // The first connection that measures is lost. Then the number of the program there is another program's, as after a
    // restart.
    let ssh = stand_in(
        folder,
        "ssh.sh",
        &format!(
            "echo \"$@\" >> log\n{LOGIN}case \"$last\" in *--update-card*) if ! test -f lost; then touch lost\n\
             sleep 100000 </dev/null >/dev/null 2>&1 &\necho $! > foreign\nfor d in there/ofa-*; do echo $! > $d/pid; done\n\
             exit 255; fi;; esac\nexec sh -c \"$last\"\n"
        ),
    );
    let models = ["bench", "run/models/smallest", "run/models/largest"];
    let on = ["--on", "ssh:board", "--ssh", &ssh, "--model-threads", "1,2", "--json"];
    let out = succeeds(folder, &[&models[..], &on, &["--data", "builtin", "--update-card"]].concat());
    let foreign = fs::read_to_string(folder.join("foreign")).unwrap();
    assert!(common::signal("TERM", foreign.trim()), "another program was ended");
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows["models"].as_array().unwrap().len(), 2);
    for (row, name) in rows["models"].as_array().unwrap().iter().zip(["smallest", "largest"]) {
        assert_eq!((&row["model"], row["latencies"].as_array().unwrap().len()), (&name.into(), 2));
        assert!(row["accuracy"]["images"].as_u64().unwrap() > 0);
        let record = fs::read_to_string(folder.join(format!("run/models/{name}/bench.json"))).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["devices"][0]["row"]["latencies"], row["latencies"]);
        assert!(record["devices"][0]["data"] == "builtin", "{record}");
    }
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.contains("--model-threads 1,2 --batch 1 --update-card") && !log.contains("builtin"), "{log}");
    assert_eq!(left(folder), 0);
    // What fails there is one sentence here, and nothing is written.
    let before = fs::read(folder.join("run/models/smallest/bench.json")).unwrap();
    let arguments =
        ["bench", "run/models/smallest", "--on", "ssh:board", "--ssh", &ssh, "--run-with", "no-such-emulator"];
    fails(folder, &arguments, &["ssh:board"]);
    assert_eq!(left(folder), 0);
    assert_eq!(fs::read(folder.join("run/models/smallest/bench.json")).unwrap(), before);
    misused(folder, &["bench", "run/models/smallest", "--on", "ssh:board", "--layers"], &["--layers"]);
}

/// The gate's server, by `OFA_SSH`.
#[test]
#[ignore = "needs a server for ssh"]
fn a_real_server_is_profiled_and_left_clean() {
    let folders = || {
        let all = fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|entry| entry.file_name());
        all.filter(|name| name.to_string_lossy().starts_with("ofa-real-")).collect::<HashSet<_>>()
    };
    let before = folders();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let ssh = std::env::var("OFA_SSH").expect("OFA_SSH is the command for the server `try`");
    let on = ["--on", "ssh:try", "--ssh", &ssh];
    let out = succeeds(folder, &profile("real", &on));
    assert!(out.contains("device 'real'"), "{out}");
    // The same measurement by a program for another architecture.
    if let Ok(program) = std::env::var("OFA_AARCH64") {
        let emulated = ["--program", &program, "--run-with", "qemu-aarch64-static"];
        let out = succeeds(folder, &profile("emulated", &[&on[..], &emulated].concat()));
        assert!(out.contains("neon"), "{out}");
        let wrong = ["--program", &program[..]];
        fails(folder, &profile("wrong", &[&on[..], &wrong].concat()), &["the machine is x86_64", "is for aarch64"]);
    }
    let unknown = profile("nobody", &["--on", "ssh:nobody.invalid", "--ssh", &ssh]);
    fails(folder, &unknown, &["ssh:nobody.invalid: no connection", "nobody.invalid"]);
    assert_eq!(folders(), before);
}
