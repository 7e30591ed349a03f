//! `ofa`: train one weight-sharing network, give every device its own model.

#![forbid(unsafe_code)]
// They panic where standard output or error cannot be written: see `output`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

// Before all others, for its macros.
#[macro_use]
mod output;

mod class_names;
mod cli;
mod commands;
mod freshness;
mod interrupt;
mod measured;
mod memory;
mod names;
mod numbers;
mod processes;
mod progress;
mod quickstart_folder;
mod ranks_model;
mod run_folder;
mod shell;
mod suggestion;
mod table;
mod usage;

use ofa_supernet::quote::shortened;
use std::process::ExitCode;

/// Maps the outcome to an exit code and nothing else: 0 success, 1 error, 2 wrong usage (clap), 128 + signal interrupted. Output that could not be
/// written makes a success an error, unless its reader closed the pipe.
fn main() -> ExitCode {
    let code = run();
    match output::finish() {
        Err(error) if code == ExitCode::SUCCESS => {
            complain!("error: cannot write the output: {error}");
            ExitCode::FAILURE
        }
        _ => code,
    }
}

fn run() -> ExitCode {
    let cli = match cli::Cli::read() {
        Ok(cli) => cli,
        // Help and version are "errors" of clap too.
        Err(error) => {
            let error = usage::shortened(error);
            match error.use_stderr() {
                true => drop(error.print()),
                false => output::attempt(|| error.print()),
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
    };
    #[cfg(unix)]
    set_environment();
    // Held to the end: MPI ends when it is dropped.
    let ranks = match processes::join() {
        Ok(ranks) => ranks,
        Err(error) => {
            complain!("error: {}", sentence(&error));
            return ExitCode::FAILURE;
        }
    };
    match cli.run(&ranks) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match interrupt::message(&error) {
            Some(message) => {
                progress::note(message);
                ExitCode::from(interrupt::exit_code())
            }
            None => {
                let message = suggestion::with_suggestion(sentence(&error));
                if ranks.are_many() {
                    processes::fail(&ranks, &message);
                }
                complain!("error: {message}");
                ExitCode::FAILURE
            }
        },
    }
}

/// What the libraries below us read from the environment alone, and when the program starts.
///
/// For its large elementwise operations candle keeps threads of its own that spin, pinned to cores, between two operations. They take the cores
/// from our kernels' threads: `ofa speed --space cifar-mbv3 --mode elastic` gave 106 images/s with them and 117 without (medians of three
/// alternating runs).
///
/// For each matrix product candle asks how many threads there are, and reads /proc/cpuinfo for it unless RAYON_NUM_THREADS tells: with the number that
/// rayon would take anyway, `ofa speed --space mbv3-w0.5 --small --mode elastic` gave 234 images/s in place of 222 (medians of five alternating runs).
///
/// The C library of Linux returns tensors' memory to the system when they are dropped, and gets it back page by page for the next step. Keeping it
/// gave 123 images/s in place of 100 with `cifar-mbv3` and 289 in place of 251 with `--mode max` (means of two alternating runs), and 4 MiB more memory
/// at the peak. Pages of 2 MiB (`hugetlb=1` only allows the system to use them) gave 0 to 9 % more images a second.
#[cfg(unix)]
fn environment() -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("CANDLE_NUM_THREADS", "1".to_owned()),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1".to_owned()),
        ("MALLOC_MMAP_THRESHOLD_", "1073741824".to_owned()),
        ("MALLOC_TRIM_THRESHOLD_", "1073741824".to_owned()),
        ("MALLOC_TOP_PAD_", "67108864".to_owned()),
    ];
    if let Ok(cores) = std::thread::available_parallelism() {
        variables.push(("RAYON_NUM_THREADS", cores.to_string()));
    }
    variables
}

/// Starts this program anew with those variables of [`environment`] that are not set: a program cannot change its own environment without
/// `unsafe`.
#[cfg(unix)]
fn set_environment() {
    use std::os::unix::process::CommandExt;
    let missing: Vec<_> = environment().into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    if !missing.is_empty()
        && let Ok(program) = std::env::current_exe()
    {
        // It only returns if that failed: then we go on, slower.
        let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(missing).exec();
    }
}

/// The error and its causes in one line, without causes that it names itself. What a file or a flag made long is cut.
fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    shortened(&line)
}
