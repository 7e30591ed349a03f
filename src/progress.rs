//! Progress bars on standard error; nothing is drawn where that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on no bars and no notes: another process shows them.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn new_bar(total: usize) -> ProgressBar {
    if QUIET.load(Ordering::Relaxed) { ProgressBar::hidden() } else { ProgressBar::new(total as u64) }
}

/// A line on standard error that is no error.
pub fn note(line: impl std::fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("{line}");
    }
}

/// A bar over `total` units with rate, remaining time and a message.
pub fn bar(total: usize, unit: &str) -> ProgressBar {
    let bar = new_bar(total);
    let template = format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{per_sec}}  ETA {{eta}}  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A bar whose message tells rate and remaining time by itself.
pub fn plain_bar(total: usize) -> ProgressBar {
    let bar = new_bar(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Seconds for people.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}
