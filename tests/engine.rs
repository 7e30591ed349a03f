//! `ofa profile --engine` through the binary, with a shell script as the engine.
#![cfg(unix)]

mod common;

use common::{changed, fails, finished_run, misused, succeeds};
use std::fs;
use std::path::Path;

/// An engine whose time is additive: a part for each byte of the file and for each squeeze-excite, with half a percent
/// of noise that differs from run to run.
const ENGINE: &str = "echo run >> runs\n\
    bytes=$(wc -c < \"$1\")\nsqueezed=$(grep -ao 'se.conv_reduce.weight' \"$1\" | wc -l)\nturn=$(wc -l < runs)\n\
    awk -v b=$bytes -v s=$squeezed -v t=$turn 'BEGIN { printf \"engine: %.6e us\\r\\n\", (100 + b / 400 + 40 * s) * (1 + 0.005 * sin(7 * t)) }'\n";

fn engine(folder: &Path, name: &str, script: &str) -> String {
    fs::write(folder.join(name), script).unwrap();
    format!("sh {} {{model}} {{threads}}", folder.join(name).display())
}

const PROFILE: &[&str] =
    &["profile", "--space", "tiny", "--classes", "10", "--run", "r", "--rounds", "2", "--check", "12"];
const TIME: &[&str] = &["--engine-time", "engine: ([^ ]+) us", "--engine-unit", "us"];

/// The profile of a device: error and estimated layers.
fn profile(folder: &Path, name: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(folder.join(format!("r/devices/{name}.json"))).unwrap()).unwrap()
}

fn runs(folder: &Path) -> usize {
    fs::read_to_string(folder.join("runs")).map_or(0, |text| text.lines().count())
}

#[test]
fn layers_times_are_solved_for_from_the_times_that_a_command_prints() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let command = engine(folder, "engine.sh", ENGINE);
    let measure = |name: &str, more: &[&str]| {
        succeeds(folder, &[PROFILE, &["--name", name, "--engine", &command], TIME, more].concat())
    };
    let out = measure("eng", &["--samples", "40", "--error", "2%"]);
    assert!(out.contains("device 'eng': command, 1 thread\n") && out.contains("% within 10 %"), "{out}");
    let whole = profile(folder, "eng");
    assert_eq!(whole["check"]["subnets"].as_array().unwrap().len(), 12);
    assert!(whole["check"]["median_error"].as_f64().unwrap() < 0.02, "{}", whole["check"]);
    assert!(whole["check"]["within_10"].as_f64().unwrap() > 0.9, "{}", whole["check"]);
    assert_eq!(whole["engine"]["name"], "command");
    assert!(!folder.join("r/devices/eng.engine").exists() && !folder.join("r/devices/eng.unfinished").exists());
    // Few networks leave layers unmeasured.
    let out = measure("few", &["--samples", "3", "--error", "0"]);
    assert!(out.contains("of them estimated"), "{out}");
    let few = profile(folder, "few");
    let table = few["table"].as_array().unwrap();
    let estimated = table.iter().filter(|entry| entry["estimated"] == true).count();
    assert!(0 < estimated && estimated < table.len(), "{estimated}");
    assert!(table.iter().all(|entry| (entry["samples"] == 0) == (entry["estimated"] == true)));
    // Integers, and a model folder in place of a file.
    let out = measure("int8", &["--samples", "20", "--number-type", "int8", "--engine-rounding", "openvino"]);
    assert!(out.contains(", int8") && profile(folder, "int8")["number_type"] == "int8", "{out}");
    let folders = format!("sh {} {{model}}/model.safetensors", folder.join("engine.sh").display());
    let command = ["--engine", &folders, "--engine-model", "folder", "--samples", "10", "--name", "folder"];
    succeeds(folder, &[PROFILE, TIME, &command].concat());
}

#[test]
fn a_command_that_fails_is_one_sentence_and_what_was_measured_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let arguments = |command: &str| {
        let words = [PROFILE, &["--samples", "10", "--name", "eng", "--engine", command], TIME].concat();
        words.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let fails_with = |command: &str, parts: &[&str]| {
        let arguments = arguments(command);
        fails(folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
        assert!(!folder.join("r/devices/eng.json").exists() && !folder.join("r/devices/eng.engine").exists());
    };
    fails_with("no-such-engine {model}", &["`no-such-engine {model}` cannot be started"]);
    fails_with("sh -c 'echo nothing' {model}", &["printed no time; its last line: nothing"]);
    fails_with("sh -c 'echo engine: 0 us' {model}", &["the time '0', which is no positive number"]);
    fails_with("sh -c 'echo no memory >&2; exit 9' {model}", &["failed with exit code 9: no memory"]);
    // A conversion that writes nothing does not leave the model of the network before.
    let once = "test -f converted || cp $1 $2/m\ntouch converted\n";
    fs::write(folder.join("convert.sh"), once).unwrap();
    let convert = format!("sh {} {{model}} {{folder}}", folder.join("convert.sh").display());
    let command = format!("sh {} {{folder}}/m", folder.join("engine.sh").display());
    fs::write(folder.join("engine.sh"), format!("test -f $1 || exit 5\n{ENGINE}")).unwrap();
    let mut converting = arguments(&command);
    converting.extend(["--engine-convert".into(), convert]);
    fails(folder, &converting.iter().map(String::as_str).collect::<Vec<_>>(), &["failed with exit code 5"]);
    fs::remove_file(folder.join("runs")).unwrap();
    // The engine breaks at its twelfth run, and is mended.
    let breaking = changed(
        ENGINE,
        "echo run >> runs\n",
        "echo run >> runs\ntest -f mended || test $(wc -l < runs) -lt 12 || exit 4\n",
    );
    let command = engine(folder, "engine.sh", &breaking);
    fails_with(&command, &["failed with exit code 4", "eng.unfinished; run the same command to resume"]);
    assert_eq!(runs(folder), 12);
    fs::write(folder.join("mended"), "").unwrap();
    let arguments = arguments(&command);
    succeeds(folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    // 22 networks twice, the fixed one before ten and before every twelve of the others, and the failed run.
    assert_eq!(runs(folder), 2 * 22 + 1 + 3 + 1);
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |more: &[&str], parts: &[&str]| fails(temporary.path(), &[PROFILE, more].concat(), parts);
    refused(&["--engine", "trt"], &["does not name {model}", "onnxruntime-python, onnxruntime-perf", "trtexec"]);
    refused(&["--engine", "run {model}"], &["needs --engine-time"]);
    refused(&["--engine", "run {model}", "--engine-time", "time"], &["'time' does not find a time", "no group"]);
    refused(&["--engine", "run {model} '"], &["a quotation mark is not closed"]);
    refused(&["--engine", "trtexec", "--engine-time", "(x)"], &["--engine-time is for commands"]);
    let litert = ["--engine", "litert-benchmark", "--engine-convert", "x {model}", "--number-type", "int8"];
    refused(&litert, &["litert-benchmark reads model.tflite", "no int8 model"]);
    refused(&["--engine", "litert-benchmark"], &["does not read ONNX", "--engine-convert", "{folder}/model.tflite"]);
    refused(&["--engine", "run {model}", "--engine-program", "x"], &["--engine-program is for named engines"]);
    let rounding = ["--engine", "run {model}", "--engine-time", "(x)", "--engine-rounding", "openvino"];
    refused(&rounding, &["--engine-rounding is for --number-type int8"]);
    let of_folder = [&rounding[..], &["--engine-model", "folder", "--number-type", "int8"]].concat();
    refused(&of_folder, &["--engine-rounding is for ONNX files"]);
    misused(temporary.path(), &[PROFILE, &["--engine-time", "(x)"]].concat(), &["required"]);
    misused(temporary.path(), &[PROFILE, &["--engine", "trtexec", "--error", "200%"]].concat(), &["from 0% to 100%"]);
}

#[test]
fn limits_of_this_machine_another_and_an_engine_hold_together() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let script = "for last; do :; done\nmkdir -p there\nexport TMPDIR=$PWD/there\nexec sh -c \"$last\"\n";
    fs::write(folder.join("ssh.sh"), script).unwrap();
    let ssh = format!("sh {}", folder.join("ssh.sh").display());
    let short = ["profile", "--run", "run", "--rounds", "2", "--check", "4", "--name"];
    succeeds(folder, &[&short[..], &["far", "--on", "ssh:far", "--ssh", &ssh]].concat());
    // The engine runs on the other machine too.
    let runs = folder.join("runs");
    let script = changed(
        &ENGINE.replace("runs\n", &format!("{}\n", runs.display())),
        "wc -l < runs",
        &format!("wc -l < {}", runs.display()),
    );
    let command = engine(folder, "engine.sh", &script);
    let measured = ["--engine", &command, "--samples", "20"];
    succeeds(folder, &[&short[..], &["here"], &measured, TIME].concat());
    succeeds(folder, &[&short[..], &["there", "--on", "ssh:far", "--ssh", &ssh], &measured, TIME].concat());
    let profiles = ["this", "far", "here", "there"].map(|name| {
        let text = fs::read_to_string(folder.join(format!("run/devices/{name}.json"))).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    });
    assert_eq!(profiles.each_ref().map(|profile| profile["engine"].is_null()), [true, true, false, false]);
    // Within a millisecond of the smallest subnet, whose time the engine's formula gives.
    let limits = ["this:latency=1s", "far:latency=1s", "here:latency=400us", "there:latency=1s"];
    let limits: Vec<&str> = limits.iter().flat_map(|limit| ["--limit", limit]).collect();
    succeeds(folder, &[&["search", "--run", "run", "--generations", "5", "--together"], &limits[..]].concat());
    let found = fs::read_dir(folder.join("run/search")).unwrap().flatten().map(|entry| entry.path());
    let found =
        found.map(|path| fs::read_to_string(path).unwrap()).find(|text| text.contains("there:latency")).unwrap();
    for device in ["this", "far", "here", "there"] {
        assert!(found.contains(&format!("{device}:latency")), "{found}");
    }
}

/// ONNX Runtime and OpenVINO of the gate's Python, by `OFA_PYTHON`.
#[test]
#[ignore = "needs Python with onnx, onnxruntime, openvino, torch and timm"]
fn real_engines_are_profiled() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let python = std::env::var("OFA_PYTHON").unwrap_or("python3".into());
    let tool = Path::new(&python).with_file_name("benchmark_app").display().to_string();
    for (engine, program) in [("onnxruntime-python", &python), ("openvino-benchmark", &tool)] {
        for number_type in ["f32", "int8"] {
            let command = ["--engine", engine, "--engine-program", program, "--number-type", number_type];
            let short = ["--samples", "3", "--check", "2", "--rounds", "1", "--error", "0", "--name", "real"];
            succeeds(folder, &[PROFILE[..7].to_vec(), command.to_vec(), short.to_vec()].concat());
            let profile = profile(folder, "real");
            assert_eq!(profile["engine"]["name"], engine);
            assert!(profile["engine"]["version"].as_str().unwrap().starts_with(char::is_numeric), "{profile}");
        }
    }
}
