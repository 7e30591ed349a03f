//! The command line: the commands and the global options. The arguments of a command are in its own file.

use crate::arguments::{numbers, option_rules};
use crate::commands::{
    bench, completions, config, export, extract, import, predict, predictor, profile, quantise, quickstart, report,
    search, speed, status, train, tune,
};
use crate::output::progress::{counted, duration};
use crate::output::terminal;
use crate::process::{interrupt, memory, processes};
use anyhow::{Result, ensure};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use ofa_supernet::Ranks;
use ofa_supernet::ops::InstructionSet;
use serde_json::Value;
use std::time::Instant;

/// Once-for-all: train one weight-sharing network, give every device its own model.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// Threads of training, evaluation and search (default: all cores).
    #[arg(long, global = true, value_parser = numbers::threads)]
    threads: Option<usize>,
    #[command(flatten, next_help_heading = "Output")]
    output: terminal::Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every step on built-in data, with a table at the end.
    Quickstart(quickstart::Args),
    /// Print a configuration to edit.
    Config(config::Args),
    /// Train a supernet: the largest subnet first, then all others with it.
    Train(train::Args),
    /// Find good hyperparameters of training on shortened runs.
    Tune(tune::Args),
    /// Make a run folder from a published once-for-all checkpoint, without training.
    Import(import::Args),
    /// Measure images per second and memory, and estimate the time of a schedule.
    Speed(speed::Args),
    /// Measure this device: a latency table for every block of the space.
    Profile(profile::Args),
    /// Measure accuracies of random subnets and fit the accuracy predictor on them.
    Predictor(predictor::Args),
    /// Find the best subnet within each limit.
    Search(search::Args),
    /// Extract subnets from the supernet as stand-alone models.
    Extract(extract::Args),
    /// Measure accuracy on test images, size and latency of extracted models.
    Bench(bench::Args),
    /// Make 8-bit integer models of extracted models, calibrated on training images.
    Quantise(quantise::Args),
    /// Write models in the file formats of other engines: ONNX.
    Export(export::Args),
    /// Show where a run stands, and what to do next.
    Status(status::Args),
    /// Write what a run has as one page: models, devices, predictor, training.
    Report(report::Args),
    /// Classify images with an extracted model.
    Predict(predict::Args),
    /// Print completions for a shell.
    Completions(completions::CompletionArgs),
    /// Write man pages.
    Man(completions::ManArgs),
}

/// Most columns of help: longer lines are hard to read.
const HELP_COLUMNS: usize = 100;

/// Version, commit, optional features, architecture, and the instruction set in use: what a report of times needs.
fn version() -> String {
    let features =
        [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal")), ("mpi", cfg!(feature = "mpi"))];
    let features: Vec<&str> = features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let features = if features.is_empty() { "none".into() } else { features.join(", ") };
    // A wrong OFA_ISA is reported by every command, but not by this one.
    let instructions = InstructionSet::from_environment().map_or("unknown", |_| InstructionSet::active().name());
    format!(
        "{}\ncommit: {}\nfeatures: {features}\narchitecture: {}-{}\ninstruction set: {instructions}",
        env!("CARGO_PKG_VERSION"),
        env!("OFA_COMMIT"),
        std::env::consts::ARCH,
        std::env::consts::OS,
    )
}

impl Cli {
    /// Reads the command line. A negative number counts as a value, for its range to refuse, not as an unknown flag.
    ///
    /// # Errors
    /// Wrong usage; also help and version.
    pub fn read() -> Result<Self, clap::Error> {
        let negative = |argument: clap::Arg| {
            let takes_values = argument.get_action().takes_values();
            argument.allow_negative_numbers(takes_values)
        };
        let command = <Cli as CommandFactory>::command().long_version(version()).mut_args(negative);
        let command = command.term_width(terminal::columns().map_or(HELP_COLUMNS, |columns| columns.min(HELP_COLUMNS)));
        let mut command = command.mut_subcommands(|subcommand| subcommand.mut_args(negative));
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        option_rules::check(&mut command, &matches)?;
        let cli = Cli::from_arg_matches(&matches)?;
        terminal::set(cli.output);
        Ok(cli)
    }

    /// Runs the chosen command as one of `ranks`; returns its result for `--json`.
    pub fn run(self, ranks: &Ranks) -> Result<Value> {
        if let Some(threads) = self.threads.filter(|_| !ranks.is_distributed()) {
            processes::hint_at_cores("--threads", threads);
        }
        ensure!(
            !ranks.is_distributed()
                || matches!(self.command, Command::Train(_) | Command::Predictor(_) | Command::Speed(_)),
            "this command runs in one process; start it without mpirun (only train, predictor and speed run in several)"
        );
        processes::start_threads(ranks, self.threads)?;
        interrupt::install()?;
        let start = Instant::now();
        terminal::detail(|| {
            let (threads, instructions) = (rayon::current_num_threads(), InstructionSet::active().name());
            let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("OFA_COMMIT"));
            format!("ofa {version} ({commit}), {}, {instructions}", counted(threads, "thread"))
        });
        let done = self.command.run(ranks);
        terminal::detail(|| {
            let peak = memory::peak().map_or(String::new(), |peak| format!(", peak memory {}", memory::mib(peak)));
            format!("took {}{peak}", duration(start.elapsed().as_secs_f64()))
        });
        done
    }
}

impl Command {
    fn run(self, ranks: &Ranks) -> Result<Value> {
        match self {
            Command::Quickstart(args) => quickstart::run(&args),
            Command::Config(args) => config::run(&args),
            Command::Train(args) => train::run(&args, ranks),
            Command::Tune(args) => tune::run(&args),
            Command::Import(args) => import::run(&args),
            Command::Speed(args) => speed::run(&args, ranks),
            Command::Profile(args) => profile::run(&args),
            Command::Predictor(args) => predictor::run(&args, ranks),
            Command::Search(args) => search::run(&args),
            Command::Extract(args) => extract::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Quantise(args) => quantise::run(&args),
            Command::Export(args) => export::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Report(args) => report::run(&args),
            Command::Predict(args) => predict::run(&args),
            Command::Completions(args) => completions::completions(&args, <Cli as CommandFactory>::command()),
            Command::Man(args) => completions::man(&args, <Cli as CommandFactory>::command()),
        }
    }
}
