//! What people and programs see of a command: results on standard output, everything else on standard error.
//!
//! | what | where | `-q` | `--json` |
//! | --- | --- | --- | --- |
//! | [`say!`]: results | standard output | shown | hidden: the command's value is printed instead |
//! | [`next`]: the command to run next | standard output | hidden | hidden |
//! | [`note`], [`hint`], progress: what happens meanwhile | standard error | hidden | shown |
//! | [`detail`]: with `-v` only | standard error | hidden | shown |
//! | [`warning`], [`error`], [`stopped`] | standard error | shown | shown |
//!
//! Of several processes only the first one shows anything but errors.

use crate::output::streams;
use console::{StyledObject, Term, style};
use indicatif::MultiProgress;
use std::fmt::{Arguments, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};

/// Options of every command that choose what it shows.
#[derive(clap::Args, Debug, Clone, Copy, Default)]
pub struct Flags {
    /// Show results, warnings and errors only: no progress, no notes.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Show details too: version and machine, checkpoints, time and peak memory.
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Print the result as one JSON object on standard output.
    #[arg(long, global = true)]
    json: bool,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();
/// Whether another process shows what happens.
static SHOWN_ELSEWHERE: AtomicBool = AtomicBool::new(false);
/// The bars that are drawn. They are hidden where standard error is not a terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Prints a line of a result to standard output; takes the arguments of `println!`.
macro_rules! say {
    () => { $crate::output::terminal::result(format_args!("\n")) };
    ($($arguments:tt)*) => { $crate::output::terminal::result(format_args!("{}\n", format_args!($($arguments)*))) };
}

/// Takes the options of the command line. Until then none is set.
pub fn set(flags: Flags) {
    let _ = FLAGS.set(flags);
}

/// Leaves colours out where `NO_COLOR` asks for it, whatever else does.
pub fn obey_no_color() {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        console::set_colors_enabled(false);
        console::set_colors_enabled_stderr(false);
    }
}

fn flags() -> Flags {
    FLAGS.get().copied().unwrap_or_default()
}

/// Whether the command's value is printed in place of text.
pub fn is_json() -> bool {
    flags().json
}

/// Leaves notes, progress and values to another process.
pub fn leave_to_another_process() {
    SHOWN_ELSEWHERE.store(true, Ordering::Relaxed);
}

/// Whether progress and notes are shown.
pub fn shows_progress() -> bool {
    !flags().quiet && !SHOWN_ELSEWHERE.load(Ordering::Relaxed)
}

/// The bars that are drawn.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Prints a part of a result to standard output, unless `--json` prints the whole as a value.
pub fn result(text: Arguments) {
    if !is_json() {
        bars().suspend(|| streams::write(text));
    }
}

/// Prints the value of a command to standard output, with `--json`.
pub fn value(value: &serde_json::Value) {
    if is_json() && !SHOWN_ELSEWHERE.load(Ordering::Relaxed) {
        bars().suspend(|| streams::write(format_args!("{value:#}\n")));
    }
}

/// Prints the commands to run next to standard output.
pub fn next(commands: impl IntoIterator<Item = String>) {
    let commands: Vec<String> = commands.into_iter().collect();
    if !flags().quiet && !commands.is_empty() {
        say!("\nNext: {}", commands.join(", "));
    }
}

/// Prints what happens to standard error.
pub fn note(line: impl Display) {
    if shows_progress() {
        to_errors(format_args!("{line}\n"));
    }
}

/// Prints advice about the command line to standard error.
pub fn hint(line: impl Display) {
    note(format_args!("{} {line}", coloured("hint:").cyan().bold()));
}

/// Prints a detail to standard error, with `-v`.
pub fn detail(line: impl FnOnce() -> String) {
    if flags().verbose {
        note(line());
    }
}

/// Prints a reason to doubt a result to standard error.
pub fn warning(line: impl Display) {
    if !SHOWN_ELSEWHERE.load(Ordering::Relaxed) {
        to_errors(format_args!("{} {line}\n", coloured("warning:").yellow().bold()));
    }
}

/// Prints the error that ends the command to standard error, and with `--json` as a value to standard output.
pub fn error(line: impl Display) {
    to_errors(format_args!("{} {line}\n", coloured("error:").red().bold()));
    value(&serde_json::json!({ "error": line.to_string() }));
}

/// Says that a signal stopped the command.
pub fn stopped(line: impl Display) {
    if !SHOWN_ELSEWHERE.load(Ordering::Relaxed) {
        to_errors(format_args!("{line}\n"));
    }
    value(&serde_json::json!({ "stopped": line.to_string() }));
}

fn to_errors(text: Arguments) {
    bars().suspend(|| streams::write_error(text));
}

/// Text for standard error, which has colours only on a terminal and without `NO_COLOR`.
fn coloured(text: &str) -> StyledObject<&str> {
    style(text).for_stderr()
}

/// Columns that standard output has room for: `COLUMNS`, otherwise those of the terminal; `None` if there is no end.
pub fn columns() -> Option<usize> {
    environment_columns().or_else(|| width(&Term::stdout()))
}

/// Columns that a line of progress has room for.
pub fn columns_of_progress() -> usize {
    let own = width(&Term::stderr());
    // A longer line than the terminal's would not be erased as a whole.
    own.into_iter().chain(environment_columns()).min().unwrap_or(80)
}

fn environment_columns() -> Option<usize> {
    std::env::var("COLUMNS").ok()?.parse().ok().filter(|&columns| columns > 0)
}

fn width(terminal: &Term) -> Option<usize> {
    terminal.size_checked().map(|(_, columns)| usize::from(columns)).filter(|&columns| columns > 0)
}
