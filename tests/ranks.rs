//! Several processes on MPI: `cargo test --release --features mpi --test ranks`. A build without MPI ignores most of
//! these tests.
#![cfg(unix)]

mod common;

use common::{changed, command, metrics, refused, small_configuration, succeeds};
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());

/// Exclusive use of the few cores.
fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Command that runs `ofa` with each list of arguments as the given number of ranks.
fn mpirun(folder: &Path, programs: &[(usize, &[&str])]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    for (index, (ranks, arguments)) in programs.iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        command.args(["-np", &ranks.to_string(), env!("CARGO_BIN_EXE_ofa")]).args(*arguments);
    }
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Errors and notes that the command printed.
#[track_caller]
fn succeed_together(folder: &Path, ranks: usize, arguments: &[&str]) -> String {
    let output = mpirun(folder, &[(ranks, arguments)]).output().unwrap();
    assert!(output.status.success(), "{ranks} ranks {arguments:?}\n{}", errors(&output));
    errors(&output)
}

/// Norms of the difference of two supernets' parameters and of their running statistics, relative to the first
/// supernet's.
fn apart(one: &Path, other: &Path) -> (f64, f64) {
    let file = |run: &Path| fs::read(run.join("checkpoints/supernet.safetensors")).unwrap();
    let (one, other) = (file(one), file(other));
    let (one, other) = (SafeTensors::deserialize(&one).unwrap(), SafeTensors::deserialize(&other).unwrap());
    let values = |file: &SafeTensors, name: &str| -> Vec<f64> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    };
    let (mut parameters, mut statistics) = ([0.0; 2], [0.0; 2]);
    for name in one.names() {
        let sums = if name.contains(".running_") { &mut statistics } else { &mut parameters };
        for (a, b) in values(&one, name).into_iter().zip(values(&other, name)) {
            sums[0] += (a - b) * (a - b);
            sums[1] += a * a;
        }
    }
    let length = |[difference, all]: [f64; 2]| (difference / all).sqrt();
    (length(parameters), length(statistics))
}

#[track_caller]
fn assert_equal_but_for_rounding(one: &Path, other: &Path) -> f64 {
    let (parameters, statistics) = apart(one, other);
    assert!(
        parameters < 1e-4 && statistics < 1e-4,
        "parameters {parameters:e}, running statistics {statistics:e} apart"
    );
    parameters
}

/// Writes a configuration of 20 steps of 32 images, over all stages, at a twentieth of the usual learning rates.
///
/// ReLU and hard swish have kinks, and a run computes millions of values. At the usual rates, rounding moves one of
/// them across a kink in three runs of four, and the weights end 1e-4 apart, even those of one rank with one and with
/// two threads. The effect of rounding on the weights is proportional to the rate, and so is the probability of
/// crossing a kink.
fn configuration(folder: &Path) {
    small_configuration(folder, "c.toml", "7.2");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let slower = |line: &str| match line.strip_prefix("learning_rate = ") {
        Some(rate) => format!("learning_rate = {}\n", rate.parse::<f64>().unwrap() / 20.0),
        None => format!("{line}\n"),
    };
    let text = text.lines().map(slower).collect::<String>();
    // With this seed of training no value crosses a kink: one rank and two end 7e-9 apart (with seed 0, 9e-6).
    let (data, train) = text.split_once("\n[train]\n").unwrap();
    let text = format!("{data}\n[train]\n{}", changed(train, "seed = 0", "seed = 3"));
    fs::write(folder.join("c.toml"), text).unwrap();
}

/// Writes the same configuration at the usual rates, for a network without kinks except in squeeze-excite.
fn smooth_configuration(folder: &Path) {
    small_configuration(folder, "c.toml", "7.2");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let smooth = ["relu", "hard_swish"].iter().fold(text, |text, activation| {
        assert!(text.contains(&format!("activation = \"{activation}\"")));
        text.replace(&format!("activation = \"{activation}\""), "activation = \"identity\"")
    });
    fs::write(folder.join("c.toml"), smooth).unwrap();
}

/// Writes [`smooth_configuration`] with what else a step can be made of: Muon, skipped blocks, a first convolution that
/// starts from the images, and drawn operations on images.
fn recipe_configuration(folder: &Path) {
    smooth_configuration(folder);
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let (space, rest) = text.split_once("\n[space.stem]\n").unwrap();
    let text = format!("{space}\n[space.stem]\n{}", rest.replacen("channels = 8", "channels = 16", 1));
    let keys = "optimizer = \"muon\"\nwhitening_stem = true\ndrop_path = 0.3";
    let text = changed(&text, "\nmomentum = ", &format!("\n{keys}\nmomentum = "));
    let (train, augmentation) = text.split_once("\n[train.augmentation]\n").unwrap();
    let drawn = "rand_augment = { operations = 2, magnitude = 3.0 }\nrandom_erasing = { probability = 0.5, area = [0.05, 0.2] }";
    fs::write(folder.join("c.toml"), format!("{train}\n[train.augmentation]\n{drawn}\n{augmentation}")).unwrap();
}

const ONE: [&str; 9] = ["train", "--config", "c.toml", "--out", "one", "--batch", "32", "--threads", "1"];

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn two_ranks_with_synchronised_batch_norm_equal_one_with_the_double_batch() {
    let _turn = turn();
    for configuration in [configuration, smooth_configuration, recipe_configuration] {
        equal_one_with_the_double_batch(configuration);
    }
}

fn equal_one_with_the_double_batch(configuration: fn(&Path)) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    succeeds(folder, &ONE);
    let train =
        |run: &'static str| ["train", "--config", "c.toml", "--out", run, "--sync-batch-norm", "--threads", "1"];
    let shown = succeed_together(folder, 2, &train("two"));
    assert_eq!(shown.matches("stage 1 of 5").count(), 1, "one rank alone shows progress: {shown}");
    let (one, two) = (metrics(&folder.join("one")), metrics(&folder.join("two")));
    assert_eq!(one.len(), two.len());
    let last = one.iter().rev().find(|line| line["type"] == "step").unwrap();
    assert!(last["step"].as_u64().unwrap() >= 20, "{last}");
    let rounding = assert_equal_but_for_rounding(&folder.join("one"), &folder.join("two"));
    // Equal ranks and threads give equal bits; each rank's own statistics are another training.
    succeed_together(folder, 2, &train("again"));
    assert_eq!(metrics(&folder.join("two")), metrics(&folder.join("again")));
    assert_eq!(common::weights(&folder.join("two")), common::weights(&folder.join("again")));
    succeed_together(folder, 2, &["train", "--config", "c.toml", "--out", "own", "--threads", "1"]);
    let own = apart(&folder.join("one"), &folder.join("own")).0;
    assert!(own > 2e-4 && own > 10.0 * rounding, "{own:e}, but rounding is {rounding:e}");
    // The linear scaling rule doubles the rate and changes nothing else.
    succeed_together(folder, 2, &["train", "--config", "c.toml", "--out", "rate", "--scale-learning-rate"]);
    let rate = |run: &str| metrics(&folder.join(run))[1]["learning_rate"].as_f64().unwrap();
    assert!((rate("rate") / rate("one") - 2.0).abs() < 1e-12);
}

/// Decisions of a step by the losses of all images, and its in-place distillation; the ranks' shares differ in length.
#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn three_ranks_choose_the_same_subnets_as_one() {
    let _turn = turn();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let (start, last) = text.split_at(text.rfind("[[train.stages]]").unwrap());
    let last = changed(last, "sampling = \"uniform\"", "sampling = \"best_up\"");
    let last = changed(&last, "teacher = \"frozen\"", "teacher = \"in_place\"");
    let last = changed(&last, "subnets_per_step = 4", "subnets_per_step = 3");
    fs::write(folder.join("c.toml"), changed(start, "batch = 16", "batch = 16\nranks = 2") + &last).unwrap();
    let train =
        |run: &'static str| ["train", "--config", "c.toml", "--out", run, "--sync-batch-norm", "--threads", "1"];
    succeeds(folder, &train("one"));
    succeed_together(folder, 3, &train("three"));
    assert_equal_but_for_rounding(&folder.join("one"), &folder.join("three"));
}

/// A started command; killed when the test fails.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Process id of rank 1 below the launcher.
fn rank_one(launcher: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
    let mut processes = children.split_whitespace();
    let is_rank_one = |process: &&str| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|&b| b == 0).any(|variable| variable == b"OMPI_COMM_WORLD_RANK=1")
    };
    processes.find(is_rank_one).map(str::to_string)
}

/// Trains as two ranks in folder `run` and sends one of them a signal after the second checkpoint (SIGUSR1 to the
/// launcher, which forwards it). Returns the output and the seconds from the signal to the end. On a busy machine
/// training can end before the signal comes; then it is repeated.
fn train_and_signal(folder: &Path, run: &str, signal: &str) -> (Output, f64) {
    let arguments = ["train", "--config", "c.toml", "--out", run, "--sync-batch-norm", "--threads", "1"];
    for _ in 0..5 {
        let mut running = Running(Some(mpirun(folder, &[(2, &arguments)]).spawn().unwrap()));
        let launcher = running.0.as_ref().unwrap().id();
        let start = Instant::now();
        while fs::read_dir(folder.join(run).join("checkpoints")).map_or(0, Iterator::count) < 2 {
            assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
            std::thread::sleep(Duration::from_millis(1));
        }
        let victim = if signal == "USR1" { Some(launcher.to_string()) } else { rank_one(launcher) };
        if let Some(victim) = victim {
            common::signal(signal, &victim);
        }
        let sent = Instant::now();
        let output = running.0.take().unwrap().wait_with_output().unwrap();
        if !output.status.success() {
            return (output, sent.elapsed().as_secs_f64());
        }
        fs::remove_dir_all(folder.join(run)).unwrap();
    }
    panic!("training always ends before the signal");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn a_killed_rank_ends_the_run_and_any_number_of_ranks_resumes() {
    let _turn = turn();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    succeeds(folder, &ONE);
    let (output, seconds) = train_and_signal(folder, "two", "KILL");
    assert!(seconds < 60.0, "{seconds}");
    assert!(errors(&output).contains("rank 1"), "{}", errors(&output));
    assert!(!folder.join("two/checkpoints/supernet.safetensors").exists());

    // A signal to one rank, or to all through the launcher, stops all ranks with a checkpoint.
    for (run, signal) in [("signalled", "USR1"), ("stopped", "TERM")] {
        let (output, _) = train_and_signal(folder, run, signal);
        assert!(errors(&output).contains("stopped at step"), "{}", errors(&output));
    }
    succeed_together(folder, 2, &["train", "--out", "stopped", "--resume", "--threads", "1"]);
    assert_equal_but_for_rounding(&folder.join("one"), &folder.join("stopped"));

    copy(&folder.join("two"), &folder.join("three"));
    copy(&folder.join("two"), &folder.join("older"));
    succeeds(folder, &["train", "--out", "two", "--resume"]);
    assert_equal_but_for_rounding(&folder.join("one"), &folder.join("two"));
    let shown = succeed_together(folder, 3, &["train", "--out", "three", "--resume", "--threads", "1"]);
    assert!(shown.contains("resumed from"), "{shown}");
    assert_equal_but_for_rounding(&folder.join("one"), &folder.join("three"));

    // Ranks that do not see the same folder.
    let resume = |run: &'static str| ["train", "--out", run, "--resume"];
    fs::remove_file(folder.join("three/checkpoints/supernet.safetensors")).unwrap();
    let output = mpirun(folder, &[(1, &resume("three")), (1, &resume("older"))]).output().unwrap();
    let shown = errors(&output);
    assert!(!output.status.success() && shown.contains("rank 1 differ"), "{shown}");
    assert!(shown.contains("folder must be one that all machines share"), "{shown}");
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn samples_are_the_same_for_any_number_of_ranks() {
    let _turn = turn();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    succeeds(folder, &ONE);
    copy(&folder.join("one"), &folder.join("two"));
    let predictor = |run: &'static str| {
        ["predictor", "--run", run, "--samples", "21", "--recalibration", "20", "--threads", "1", "--members", "1"]
    };
    succeeds(folder, &predictor("one"));
    succeed_together(folder, 2, &predictor("two"));
    let samples = |run: &str| fs::read_to_string(folder.join(run).join("predictor/samples.jsonl")).unwrap();
    assert_eq!(samples("one").lines().count(), 21);
    assert_eq!(samples("one"), samples("two"));
    // Further samples are added to the file.
    let more = |run: &'static str| predictor(run).map(|argument| if argument == "21" { "30" } else { argument });
    succeeds(folder, &more("one"));
    succeed_together(folder, 3, &more("two"));
    assert_eq!((samples("one").lines().count(), samples("one")), (30, samples("two")));
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn errors_come_once_and_with_their_rank() {
    let _turn = turn();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    let fail = |programs: &[(usize, &[&str])]| {
        let output = mpirun(folder, programs).output().unwrap();
        assert!(!output.status.success());
        let shown = errors(&output);
        assert_eq!(shown.matches("error: ").count(), 1, "{shown}");
        shown
    };
    let good: [&str; 5] = ["train", "--config", "c.toml", "--out", "run"];
    let bad: [&str; 5] = ["train", "--config", "none.toml", "--out", "run"];
    assert!(fail(&[(2, &bad)]).contains("error: rank 0: none.toml"));
    // By then rank 0 waits for rank 1.
    assert!(fail(&[(1, &good), (1, &bad)]).contains("error: rank 1: none.toml"));
    let search = ["search", "--run", "run", "--limit", "any:macs=1M"];
    assert!(fail(&[(2, &search)]).contains("rank 0: this command runs in one process"));
    let other: [&str; 5] = ["train", "--config", "d.toml", "--out", "run"];
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("d.toml"), changed(&text, "log_every = 1", "log_every = 2")).unwrap();
    let shown = fail(&[(1, &good), (1, &other)]);
    assert!(shown.contains("training configurations: rank 1 differ from rank 0"), "{shown}");
    // Weights are compared at each checkpoint, the first one included. Here each rank has its own network.
    fs::write(folder.join("d.toml"), changed(&text, "width_multiplier = 1.0", "width_multiplier = 2.0")).unwrap();
    let shown = fail(&[(1, &good), (1, &other)]);
    assert!(shown.contains("the weights at step 0: rank 1 differ"), "{shown}");
    let threads = std::thread::available_parallelism().unwrap().get() + 1;
    let all = threads.to_string();
    let crowd = ["speed", "--space", "tiny", "--batch", "1", "--steps", "1", "--threads", &all];
    let shown = succeed_together(folder, 2, &crowd);
    let hint = format!("2 processes with {} threads in all share", 2 * threads);
    assert!(shown.contains("hint: ") && shown.contains(&hint), "{shown}");
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs MPI")]
fn the_speed_of_several_is_measured() {
    let _turn = turn();
    let temporary = tempfile::tempdir().unwrap();
    configuration(temporary.path());
    let arguments = ["speed", "--config", "c.toml", "--steps", "2", "--threads", "1", "--json"];
    let output = mpirun(temporary.path(), &[(2, &arguments)]).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // The schedule is that of a training by two: steps of 32 images.
    let steps = report["schedule"].as_array().unwrap().iter().map(|stage| stage["steps"].as_u64().unwrap());
    assert!((18..=24).contains(&steps.sum::<u64>()), "{report}");
    let ranks = &report["ranks"];
    assert_eq!(ranks["ranks"], 2);
    for key in ["latency_microseconds", "gigabytes_per_second"] {
        assert!(ranks[key].as_f64().unwrap() > 0.0, "{report}");
    }
}

/// A process that was started as one of several must not train alone.
#[test]
fn a_program_without_mpi_refuses_to_be_one_of_several() {
    let temporary = tempfile::tempdir().unwrap();
    let mut alone = command(temporary.path(), &["config"]);
    // With MPI there is no launcher to reach.
    let expected = if cfg!(feature = "mpi") { "to MPI this one is alone" } else { "the program has no MPI" };
    refused(&alone.env("OMPI_COMM_WORLD_SIZE", "2").output().unwrap(), &[expected]);
}

#[test]
fn a_configuration_may_say_for_how_many_ranks_it_is() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder);
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("c.toml"), changed(&text, "batch = 16", "batch = 16\nranks = 2")).unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--out", "two"]);
    let text = changed(&text, "batch = 16", "batch = 32");
    fs::write(folder.join("c.toml"), text).unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--out", "one"]);
    assert_eq!(metrics(&folder.join("one")), metrics(&folder.join("two")));
}
