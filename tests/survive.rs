//! Runs that are killed, signalled, locked, or lose their disk.
#![cfg(unix)]

mod common;

use common::{changed, command, fails, metrics, ofa, refused, small_configuration, succeeds, weights, write_images};
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A started command; killed when the test fails.
struct Running(Option<Child>);

impl Running {
    fn start(mut command: Command) -> Running {
        Running(Some(command.spawn().unwrap()))
    }

    fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn signal(&self, name: &str) {
        assert!(common::signal(name, self.id()));
    }

    /// Waits until `reached` or the end of the process; returns whether the process still runs.
    fn wait_until(&mut self, mut reached: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !reached() {
            if self.0.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            assert!(start.elapsed() < Duration::from_secs(240), "nothing happens");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Kills the process; false if it had ended before.
    fn kill(mut self) -> bool {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap().code().is_none()
    }

    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Number of whole lines of a file; 0 if there is no file.
fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|&&b| b == b'\n').count())
}

/// The last step in `metrics.jsonl`.
fn step(run: &Path) -> usize {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let last: Option<serde_json::Value> = whole.lines().last().and_then(|line| serde_json::from_str(line).ok());
    last.and_then(|line| line["step"].as_u64()).unwrap_or(0) as usize
}

fn train(run: &str, resume: bool) -> Vec<&str> {
    if resume { vec!["train", "--out", run, "--resume"] } else { vec!["train", "--config", "c.toml", "--out", run] }
}

/// Steps to kill at: one random step in each of the stages that a finished run's metrics name, the first four of them.
fn targets(run: &Path, seed: u64) -> Vec<usize> {
    let mut stages: Vec<usize> = metrics(run)
        .iter()
        .filter(|line| line["type"] == "stage" || line["type"] == "finished")
        .map(|line| line["step"].as_u64().unwrap() as usize)
        .collect();
    stages.dedup();
    assert!(stages.len() >= 5, "four stages at least");
    let mut rng = generator(seed, Stream::Order, &[]);
    let mut chosen: Vec<usize> = (1..stages.len()).map(|i| rng.random_range(stages[i - 1] + 1..=stages[i])).collect();
    while chosen.len() > 4 {
        chosen.remove(rng.random_range(0..chosen.len()));
    }
    chosen
}

/// Trains with a `kill -9` at each of four random steps; the result must be that of the run `reference`.
fn train_with_kills(folder: &Path, reference: &str, seed: u64) {
    let name = format!("killed-{seed}");
    let run = folder.join(&name);
    let mut rng = generator(seed, Stream::Sampling, &[]);
    let mut killed = 0;
    for (index, target) in targets(&folder.join(reference), seed).into_iter().enumerate() {
        let mut running = Running::start(command(folder, &train(&name, index > 0)));
        running.wait_until(|| step(&run) >= target);
        // Anywhere in the step, or in the writing of a checkpoint.
        std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
        killed += usize::from(running.kill());
    }
    assert!(killed > 0, "seed {seed}: all had ended before they were killed");
    succeeds(folder, &train(&name, true));
    assert!(weights(&run) == weights(&folder.join(reference)), "seed {seed}: the weights differ");
    assert_eq!(metrics(&run), metrics(&folder.join(reference)), "seed {seed}");
    let mut names = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.any(|name| name.to_string_lossy().ends_with(".tmp")));
    fs::remove_dir_all(&run).unwrap();
}

#[test]
fn killed_and_resumed_work_ends_with_the_same_bits() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "8");
    succeeds(folder, &train("whole", false));
    train_with_kills(folder, "whole", 0);

    // Sampling for the predictor.
    let copy = |to: &str| {
        let status = Command::new("cp").args(["-r", "whole", to]).current_dir(folder).status().unwrap();
        assert!(status.success());
    };
    copy("killed");
    fn predictor(run: &str) -> [&str; 11] {
        ["predictor", "--run", run, "--samples", "24", "--recalibration", "60", "--images", "20", "--batch", "20"]
    }
    succeeds(folder, &predictor("whole"));
    let samples = folder.join("killed/predictor/samples.jsonl");
    for target in [3, 11, 17] {
        let mut running = Running::start(command(folder, &predictor("killed")));
        assert!(running.wait_until(|| lines(&samples) >= target));
        running.kill();
        // A line that power loss cut.
        let mut torn = fs::read(&samples).unwrap();
        torn.extend_from_slice(b"{\"subnet\": \"r16 d");
        fs::write(&samples, torn).unwrap();
    }
    succeeds(folder, &predictor("killed"));
    for file in ["samples.jsonl", "predictor.safetensors", "fit.json"] {
        let read = |run: &str| fs::read(folder.join(run).join("predictor").join(file)).unwrap();
        assert!(read("killed") == read("whole"), "{file}");
    }

    // A search is short, so it is repeated from its beginning, and a kill leaves no partial file.
    fn search(run: &str) -> [&str; 9] {
        ["search", "--run", run, "--limit", "any:macs=0.5M", "--generations", "2000", "--patience", "2000"]
    }
    succeeds(folder, &search("whole"));
    let found = "search/any-macs-500k.json";
    let result = fs::read(folder.join("whole").join(found)).unwrap();
    // On a busy machine a sleep may outlast the search.
    let kill_after = |milliseconds: u64| {
        let running = Running::start(command(folder, &search("killed")));
        std::thread::sleep(Duration::from_millis(milliseconds));
        running.kill()
    };
    assert!([30, 10, 3, 1, 0].into_iter().any(kill_after), "all searches had ended before");
    assert!(fs::read(folder.join("killed").join(found)).map_or(true, |bytes| bytes == result));
    succeeds(folder, &search("killed"));
    assert!(fs::read(folder.join("killed").join(found)).unwrap() == result, "the searches differ");

    // A killed profile resumes after its last complete round.
    let profile = ["profile", "--run", "killed", "--rounds", "6", "--check", "4"];
    let unfinished = folder.join("killed/devices/this.unfinished");
    let rounds = || -> Option<u64> {
        serde_json::from_slice::<serde_json::Value>(&fs::read(&unfinished).ok()?).unwrap()["rounds"].as_u64()
    };
    let mut running = Running::start(command(folder, &profile));
    assert!(running.wait_until(|| rounds() >= Some(2)));
    running.kill();
    let kept = rounds().unwrap();
    let mut running = Running::start(command(folder, &profile));
    let mut least = u64::MAX;
    running.wait_until(|| {
        least = least.min(rounds().unwrap_or(least));
        false
    });
    assert!(least >= kept, "{least} rounds after {kept}");
    assert!(!unfinished.exists());
    succeeds(folder, &["search", "--run", "killed", "--limit", "this:latency=1s", "--generations", "3"]);
}

/// The long form: `cargo test --release --test survive -- --ignored a_hundred`.
#[test]
#[ignore = "takes some minutes"]
fn a_hundred_kills() {
    let temporary = tempfile::tempdir().unwrap();
    small_configuration(temporary.path(), "c.toml", "8");
    succeeds(temporary.path(), &train("whole", false));
    for seed in 1..=25 {
        train_with_kills(temporary.path(), "whole", seed);
        println!("{} kills", 4 * seed);
    }
}

/// Whether this program was started with SIGHUP ignored, as `nohup` does.
fn hangups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1)
}

#[test]
fn a_stopped_run_is_cut_short_by_other_epochs() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "800");
    let mut running = Running::start(command(folder, &train("run", false)));
    // Warmed up: a warm-up is the same for all epochs.
    assert!(running.wait_until(|| step(&folder.join("run")) > 200));
    running.signal("INT");
    running.output();
    let path = folder.join("run/config.toml");
    let mut config: toml::Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    // An epoch has six steps. The first of five stages is under way.
    let first = step(&folder.join("run")) as f64 / 6.0 + 1.0;
    for (index, stage) in config["train"]["stages"].as_array_mut().unwrap().iter_mut().enumerate() {
        stage["epochs"] = if index == 0 { first } else { 1.0 }.into();
        if index > 0 {
            stage["warmup_epochs"] = 0.5.into();
        }
    }
    fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    let output = command(folder, &train("run", true)).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert!(err.contains("other settings than before: the learning rate goes on at "), "{err}");
    let first_steps = (first * 6.0).round() as usize;
    assert_eq!(step(&folder.join("run")), first_steps + 4 * 6);
    let report: serde_json::Value =
        serde_json::from_str(&succeeds(folder, &["report", "--run", "run", "--json"])).unwrap();
    assert_eq!(report["training"]["stages"][0]["steps"], first_steps);
}

#[test]
fn signals_stop_after_the_step_and_say_how_to_resume_and_a_second_one_ends_at_once() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "800");
    let mut signals = vec![("INT", 130), ("TERM", 143), ("USR1", 138), ("HUP", 129)];
    // What this program ignores, the programs that it starts ignore, too.
    signals.retain(|(signal, _)| *signal != "HUP" || !hangups_are_ignored());
    for (index, (signal, code)) in signals.into_iter().enumerate() {
        let before = step(&folder.join("run"));
        let mut arguments = train("run", index > 0);
        let as_json = signal == "USR1";
        arguments.extend(as_json.then_some("--json"));
        let mut running = Running::start(command(folder, &arguments));
        assert!(running.wait_until(|| step(&folder.join("run")) > before));
        running.signal(signal);
        let output = running.output();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        let stopped = err.lines().last().unwrap();
        assert!(stopped.starts_with("stopped at step "), "{err}");
        assert!(stopped.ends_with("resume with: ofa train --out run --resume"), "{err}");
        if as_json {
            let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(object, serde_json::json!({ "stopped": stopped }));
        }
        let saved = stopped.split_whitespace().find(|word| word.ends_with(".safetensors;")).unwrap();
        assert!(folder.join(saved.trim_end_matches(';')).exists());
    }

    // A process started by `nohup` does not end with its terminal.
    let before = step(&folder.join("run"));
    let mut nohup = Command::new("sh");
    nohup
        .args(["-c", "trap '' HUP; exec \"$0\" train --out run --resume", env!("CARGO_BIN_EXE_ofa")])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut running = Running::start(nohup);
    assert!(running.wait_until(|| step(&folder.join("run")) > before));
    running.signal("HUP");
    let before = step(&folder.join("run"));
    assert!(running.wait_until(|| step(&folder.join("run")) > before + 2));
    running.kill();

    // Long steps: the second signal does not wait for the end of a step.
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let text = changed(&text, "builtin_train = 120", "builtin_train = 4000");
    fs::write(folder.join("c.toml"), changed(&text, "batch = 16", "batch = 3900")).unwrap();
    let mut running = Running::start(command(folder, &train("slow", false)));
    assert!(running.wait_until(|| lines(&folder.join("slow/metrics.jsonl")) > 0));
    std::thread::sleep(Duration::from_millis(50));
    running.signal("TERM");
    std::thread::sleep(Duration::from_millis(20));
    running.signal("INT");
    // The exit code of the first signal would be 143.
    assert_eq!(running.output().status.code(), Some(130));
}

#[test]
fn a_second_process_is_refused_and_told_the_first_until_that_dies() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "800");
    let mut running = Running::start(command(folder, &train("run", false)));
    assert!(running.wait_until(|| step(&folder.join("run")) > 4));
    let holder = format!("process {} (`ofa train --config c.toml --out run`)", running.id());
    fails(folder, &train("run", true), &["run: ", &holder]);
    fails(folder, &["search", "--run", "run", "--limit", "any:macs=1M"], &[&holder]);
    fails(folder, &["predictor", "--run", "run"], &[&holder]);
    running.kill();
    let before = step(&folder.join("run"));
    let mut running = Running::start(command(folder, &train("run", true)));
    assert!(running.wait_until(|| step(&folder.join("run")) > before));
    running.kill();

    // Sampling holds the lock as well, and importing asks for it.
    small_configuration(folder, "short.toml", "0.6");
    succeeds(folder, &["train", "--config", "short.toml", "--out", "short"]);
    let predictor = ["predictor", "--run", "short", "--samples", "5000", "--recalibration", "60", "--images", "20"];
    let mut running = Running::start(command(folder, &predictor));
    assert!(running.wait_until(|| lines(&folder.join("short/predictor/samples.jsonl")) > 0));
    let holder = format!("process {} (`ofa predictor --run short", running.id());
    fails(folder, &["search", "--run", "short", "--limit", "any:macs=1M"], &["short: ", &holder]);
    fails(folder, &["predictor", "--run", "short", "--import", "samples.csv"], &[&holder]);
    running.kill();
}

/// A limit on file sizes makes writes fail as on a full disk, and needs no privileges.
#[test]
fn a_write_that_fails_leaves_the_checkpoints_before_it() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "8");
    succeeds(folder, &train("whole", false));
    // The first checkpoint holds only the weights, later ones three times as much. Shells count in 512 or 1024 bytes.
    let blocks = weights(&folder.join("whole")).len() * 6 / 5 / 512;
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_ofa"), "train", "--config", "c.toml", "--out", "run"])
        .current_dir(folder)
        .output()
        .unwrap();
    let go_on = "resume with: ofa train --out run --resume";
    refused(&output, &["run/checkpoints/step-", "File too large", go_on]);
    let names: Vec<String> = fs::read_dir(folder.join("run/checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000000.safetensors"]);
    succeeds(folder, &train("run", true));
    assert!(weights(&folder.join("run")) == weights(&folder.join("whole")));
}

/// A mounted file system in memory.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(path: &'a Path, size: &str) -> Self {
        fs::create_dir(path).unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status().unwrap();
        assert!(status.success());
        Mounted(path)
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// `cargo test --release --test survive -- --ignored a_full`, as root.
#[test]
#[ignore = "mounts a file system"]
fn a_full_and_a_read_only_disk_are_named_and_training_goes_on_afterwards() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "8");
    succeeds(folder, &train("whole", false));
    let size = weights(&folder.join("whole")).len();
    let disk = folder.join("disk");
    let mounted = Mounted::new(&disk, &format!("{}k", size * 5 / 1024));
    fails(
        folder,
        &train("disk/run", false),
        &["disk/run", "No space left", "resume with: ofa train --out disk/run --resume"],
    );
    mounted.remount("ro");
    fails(folder, &train("disk/run", true), &["disk/run", "Read-only file system"]);
    mounted.remount("rw");
    mounted.remount("size=100m");
    succeeds(folder, &train("disk/run", true));
    assert!(weights(&folder.join("disk/run")) == weights(&folder.join("whole")));
    assert_eq!(metrics(&folder.join("disk/run")), metrics(&folder.join("whole")));
}

#[test]
fn a_fifo_among_the_images_is_named_and_skipped() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for split in ["train", "test"] {
        for (class, brightness) in [("dark", 40), ("light", 200)] {
            write_images(&folder.join("images").join(split).join(class), 20, brightness);
        }
    }
    assert!(Command::new("mkfifo").arg(folder.join("images/train/dark/pipe.jpg")).status().unwrap().success());
    let arguments = ["train", "--preset", "tiny", "--epochs", "1", "--batch", "8", "--data", "images", "--out", "run"];
    fails(folder, &arguments, &["images/train/dark/pipe.jpg", "a FIFO", "--skip-bad"]);
    let output = ofa(folder, &[&arguments[..], &["--skip-bad"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 skipped"), "{output:?}");
    assert!(output.status.success());
}

#[test]
fn images_are_streamed_alike_and_one_that_vanishes_under_way_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (split, count) in [("train", 40), ("test", 4)] {
        for (class, value) in [("dark", 40u8), ("light", 200)] {
            let path = folder.join("images").join(split).join(class);
            fs::create_dir_all(&path).unwrap();
            for index in 0..count {
                let image =
                    image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([value, (x * 9) as u8, (y * index) as u8]));
                image.save(path.join(format!("{index}.png"))).unwrap();
            }
        }
    }
    small_configuration(folder, "c.toml", "100");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let text = changed(&text, "source = \"builtin\"", "source = \"images\"");
    fs::write(folder.join("c.toml"), &text).unwrap();
    succeeds(folder, &train("whole", false));
    fs::write(folder.join("c.toml"), changed(&text, "skip_bad", "cache_mib = 0\nskip_bad")).unwrap();
    let output = ofa(folder, &train("streamed", false));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("read from files for each batch"), "{err}");
    assert!(weights(&folder.join("streamed")) == weights(&folder.join("whole")));

    let mut running = Running::start(command(folder, &train("run", false)));
    assert!(running.wait_until(|| step(&folder.join("run")) > 4));
    // The checkpoint folder is recreated at once, since a checkpoint may be written at this moment.
    fs::rename(folder.join("run/checkpoints"), folder.join("removed")).unwrap();
    let checkpoints = folder.join("run/checkpoints");
    let is_written = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
    assert!(
        running.wait_until(|| ofa_supernet::files::list_folder(&checkpoints).unwrap().iter().any(|p| is_written(p)))
    );
    let (image, aside) = (folder.join("images/train/light/7.png"), folder.join("7.png"));
    fs::rename(&image, &aside).unwrap();
    refused(&running.output(), &["light/7.png", "No such file", "resume with: ofa train --out run --resume"]);
    fs::rename(&aside, &image).unwrap();
    succeeds(folder, &train("run", true));
    assert!(weights(&folder.join("run")) == weights(&folder.join("whole")));
}
