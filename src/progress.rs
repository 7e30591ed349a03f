//! Progress bars on standard error, drawn only if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Hides all further bars and notes, since another process shows them.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn new_bar(total: usize) -> ProgressBar {
    if QUIET.load(Ordering::Relaxed) { ProgressBar::hidden() } else { ProgressBar::new(total as u64) }
}

/// Prints a note (not an error) to standard error, unless another process shows it.
pub fn note(line: impl std::fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        complain!("{line}");
    }
}

/// Progress bar over `total` units with rate, remaining time and a message.
pub fn bar(total: usize, unit: &str) -> ProgressBar {
    let bar = new_bar(total);
    let template = format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{per_sec}}  ETA {{eta}}  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// Progress bar without rate and remaining time, which its message shows instead.
pub fn plain_bar(total: usize) -> ProgressBar {
    let bar = new_bar(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Duration in a readable unit; only 0 is shown as 0.
pub fn duration(seconds: f64) -> String {
    if seconds > 0.0 && seconds < 0.9995 {
        return format!("{}ms", (1e3 * seconds).round().max(1.0));
    }
    if seconds > 0.0 && seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let s = seconds.max(0.0).round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// Rate with three digits or more, so that a slow rate is not shown as 0.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 99.95 => format!("{rate:.0}"),
        rate if rate >= 9.995 => format!("{rate:.1}"),
        rate => format!("{rate:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_and_slow_rates_are_not_zero() {
        let shown = [0.0, 1e-5, 0.04, 0.9994, 0.9996, 3.25, 9.94, 9.96, 59.6, 754.0, 7230.0].map(duration);
        assert_eq!(shown, ["0s", "1ms", "40ms", "999ms", "1.0s", "3.2s", "9.9s", "10s", "1m00s", "12m34s", "2h00m"]);
        assert_eq!([0.014, 0.4, 9.99, 23.44, 1234.5].map(rate), ["0.01", "0.40", "9.99", "23.4", "1234"]);
    }
}
