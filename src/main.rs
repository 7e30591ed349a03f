//! `ofa`: train one weight-sharing network, give every device its own model.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod interrupt;
mod measured;
mod memory;
mod progress;
mod run_folder;
mod suggestion;
mod table;

use clap::Parser;
use std::process::ExitCode;

/// Maps the outcome to an exit code and nothing else: 0 success, 1 error, 2 wrong usage (clap), 128 + signal interrupted.
fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    #[cfg(unix)]
    keep_candle_on_one_thread();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match interrupt::message(&error) {
            Some(message) => {
                eprintln!("{message}");
                ExitCode::from(interrupt::exit_code())
            }
            None => {
                eprintln!("error: {}", suggestion::with_suggestion(sentence(&error)));
                ExitCode::FAILURE
            }
        },
    }
}

/// Starts this program anew with `CANDLE_NUM_THREADS=1`, unless the variable is set. For its large elementwise operations candle
/// keeps threads of its own that spin, pinned to cores, between two operations. They take the cores from our kernels' threads:
/// `ofa speed --space cifar-mbv3 --mode elastic` gave 106 images/s with them and 117 without (medians of three alternating runs).
/// Only the environment tells candle, and a program cannot change its own without `unsafe`.
#[cfg(unix)]
fn keep_candle_on_one_thread() {
    use std::os::unix::process::CommandExt;
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        // It only returns if that failed: then we go on, slower.
        let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, "1").exec();
    }
}

/// The error and its causes in one line, without causes that it names itself.
fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
