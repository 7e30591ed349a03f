//! `ofa`: train one weight-sharing network, give every device its own model.
//!
//! The program is a library too, so that a program with block kinds of its own (`ofa_supernet::blocks::register`) has
//! all commands: see `examples/fused_mbconv.rs`.

// Only `allocator` calls a C library.
#![deny(unsafe_code)]
// They panic where standard output or error cannot be written: see `output`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

// Before all others, for its macro.
#[macro_use]
mod terminal;

mod allocator;
mod choice;
mod class_names;
mod cli;
mod commands;
mod conditions;
mod configuration;
mod engine;
mod freshness;
mod interrupt;
mod kept_samples;
mod measured;
mod memory;
mod model_folders;
mod model_origin;
mod names;
mod new_folder;
mod new_training;
mod numbers;
mod output;
mod predictor_report;
mod processes;
mod progress;
mod quickstart_folder;
mod ranks_model;
mod remote;
mod report;
mod result_files;
mod run_folder;
mod scorer;
mod searches;
mod shell;
mod starting_weights;
mod strategy_options;
mod subnet_text;
mod suggestion;
mod table;
mod training_summary;
mod usage;

use ofa_supernet::ops::InstructionSet;
use ofa_supernet::quote::shortened;
use std::process::ExitCode;

/// Runs the command of this process's arguments. Call it once, first in `main`.
///
/// The outcome becomes an exit code: 0 success, 1 error, 2 wrong usage (clap), 128 + signal interrupted. Output that
/// could not be written makes a success an error, unless its reader closed the pipe.
pub fn main() -> ExitCode {
    // Before there is a second thread.
    ofa_supernet::environment::prepare_process();
    allocator::keep_freed_memory();
    let code = run();
    match output::finish() {
        Err(error) if code == ExitCode::SUCCESS => {
            terminal::error(format_args!("cannot write the output: {error}"));
            ExitCode::FAILURE
        }
        _ => code,
    }
}

/// Exit code of a wrong command line.
const USAGE: u8 = 2;

fn run() -> ExitCode {
    terminal::obey_no_color();
    // Configurations and JSON hold paths as text.
    if let Some(argument) = std::env::args_os().find(|argument| argument.to_str().is_none()) {
        terminal::error(format_args!(
            "the argument {argument:?} is not UTF-8; expected names and paths in that encoding"
        ));
        return ExitCode::from(USAGE);
    }
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
    if let Err(error) = InstructionSet::from_environment() {
        terminal::error(shortened(&error.to_string()));
        return ExitCode::FAILURE;
    }
    // Held to the end: MPI ends when it is dropped.
    let ranks = match processes::join() {
        Ok(ranks) => ranks,
        Err(error) => {
            terminal::error(sentence(&error));
            return ExitCode::FAILURE;
        }
    };
    match cli.run(&ranks) {
        Ok(value) => {
            terminal::value(&value);
            ExitCode::SUCCESS
        }
        Err(error) => match interrupt::message(&error) {
            Some(message) => {
                terminal::stopped(message);
                ExitCode::from(interrupt::exit_code())
            }
            None => {
                let message = suggestion::with_suggestion(sentence(&error));
                if ranks.is_distributed() {
                    processes::fail(&ranks, &message);
                }
                terminal::error(message);
                ExitCode::FAILURE
            }
        },
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
