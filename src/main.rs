//! `ofa`: train one weight-sharing network, give every device its own model.

mod cli;
mod commands;
mod interrupt;
mod progress;
mod run_folder;
mod table;

use clap::Parser;
use std::process::ExitCode;

/// Maps the outcome to an exit code and nothing else: 0 success, 1 error, 2 wrong usage (clap), 130 interrupted.
fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if interrupt::is(&error) => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
