//! `ofa`: train one weight-sharing network, give every device its own model.
//!
//! The program is a library too, so that a program with block kinds of its own (`ofa_supernet::blocks::register`) has
//! all commands: see `examples/fused_mbconv.rs`.
//!
//! | module | concern |
//! | --- | --- |
//! | `arguments`, `commands` | the command line, and a file per command |
//! | `configuration` | the configuration file as people read it |
//! | `run_folder` | the folder of a run: its files, and whether they belong together |
//! | `search` | scores and files of searches |
//! | `output`, `report` | what commands print, and the report of a run |
//! | `process`, `remote` | memory, signals and several processes; this program on another machine |

// Only `process::allocator` calls a C library.
#![deny(unsafe_code)]
// They panic where standard output or error cannot be written: see `output::streams`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

// Before all others, for its macro.
#[macro_use]
mod output;

mod arguments;
mod commands;
mod configuration;
mod process;
mod remote;
mod report;
mod run_folder;
mod search;

use arguments::{cli, suggestion, usage};
use ofa_supernet::ops::InstructionSet;
use ofa_supernet::quote::shortened;
use output::{streams, terminal};
use process::{allocator, interrupt, processes};
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
    match streams::finish() {
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
                false => streams::attempt(|| error.print()),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Files below `folder` that declare modules.
    fn files_with_modules(folder: &Path) -> Vec<PathBuf> {
        let entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let (folders, mut files): (Vec<PathBuf>, Vec<PathBuf>) = entries.into_iter().partition(|path| path.is_dir());
        files.retain(|path| path.ends_with("lib.rs") || path.ends_with("mod.rs"));
        files.extend(folders.iter().flat_map(|folder| files_with_modules(folder)));
        files
    }

    /// The module that a line declares.
    fn module(line: &str) -> Option<&str> {
        let (before, name) = line.split_once("mod ")?;
        if before.is_empty() || before.starts_with("pub") { name.strip_suffix(';') } else { None }
    }

    #[test]
    fn every_file_with_modules_starts_with_a_table_that_has_them_all() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
        let members = manifest["workspace"]["members"].as_array().unwrap().iter();
        let members = members.map(|member| member.as_str().unwrap()).chain([""]);
        let sources = members.map(|member| root.join(member).join("src"));
        let files: Vec<PathBuf> = sources.flat_map(|folder| files_with_modules(&folder)).collect();
        assert!(files.len() > 20, "{files:?}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let of_tests = |number: usize| number > 0 && lines[number - 1] == "#[cfg(test)]";
            let others = (0..lines.len()).filter(|&number| !of_tests(number));
            let modules: Vec<&str> = others.filter_map(|number| module(lines[number])).collect();
            // A single module needs no table.
            if modules.len() < 2 {
                continue;
            }
            let first_cells = lines.iter().filter_map(|line| line.strip_prefix("//! | ")?.split('|').next());
            let words: Vec<&str> = first_cells.flat_map(|cell| cell.split('`')).collect();
            for name in modules {
                let is_named = words.contains(&name) || words.contains(&format!("mod@{name}").as_str());
                assert!(is_named, "{}: no row for the module {name}", file.display());
            }
        }
    }
}
