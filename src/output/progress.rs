//! Progress of work that takes a while: a bar on a terminal, a line per minute in a log.

use crate::output::{streams, terminal};
use console::{measure_text_width, truncate_str};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Columns of a bar, where the line has room for it.
const BAR: usize = 30;
/// Shortest time between two changes of what a bar shows.
const REDRAW: Duration = Duration::from_millis(66);
/// Seconds between two lines in a log, unless `OFA_PROGRESS_SECONDS` tells otherwise.
const LOG_SECONDS: f64 = 60.0;

/// Work whose progress is shown until this value is dropped.
pub struct Bar {
    /// Hidden where there is no terminal.
    bar: ProgressBar,
    /// What is done, at the beginning of a line in a log.
    work: String,
    unit: &'static str,
    state: Mutex<State>,
}

struct State {
    done: usize,
    total: usize,
    /// What was done when the work began, of an earlier session.
    before: Option<usize>,
    began: Instant,
    /// Rate with its unit and remaining seconds, where the work knows better than the steps so far.
    pace: Option<(String, f64)>,
    details: Vec<String>,
    drawn: Option<Instant>,
    logged: Instant,
}

impl Bar {
    /// Shows the progress of `work` over `total` units; 0 if the number is not known yet.
    pub fn new(work: impl Into<String>, total: usize, unit: &'static str) -> Self {
        let bar = if terminal::shows_progress() {
            let bar = ProgressBar::new(0);
            set_template(&bar, "{msg}");
            terminal::bars().add(bar)
        } else {
            ProgressBar::hidden()
        };
        let now = Instant::now();
        let state = State {
            done: 0,
            total,
            before: None,
            began: now,
            pace: None,
            details: Vec::new(),
            drawn: None,
            logged: now,
        };
        let bar = Bar { bar, work: work.into(), unit, state: Mutex::new(state) };
        bar.update(|_| ());
        bar
    }

    /// Sets what is done and the total. The first call says what an earlier session did.
    pub fn set(&self, done: usize, total: usize) {
        self.update(|state| state.set(done, total));
    }

    /// Sets what is done, the total and the details: one line in a log.
    pub fn advance<const N: usize>(&self, done: usize, total: usize, details: [String; N]) {
        self.update(|state| {
            state.set(done, total);
            state.details = shown(details);
        });
    }

    /// Adds finished units.
    pub fn add(&self, units: usize) {
        self.update(|state| {
            state.before.get_or_insert(0);
            state.done += units;
            // A search may score more than it was expected to.
            state.total = state.total.max(state.done);
        });
    }

    /// Sets what is shown behind rate and remaining time, the most important part first.
    pub fn details<const N: usize>(&self, details: [String; N]) {
        self.update(|state| state.details = shown(details));
    }

    /// Sets rate and remaining seconds in place of those of the units, for the next change.
    pub fn pace(&self, rate: String, seconds: f64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pace = Some((rate, seconds));
    }

    /// Changes the state, and draws it or writes it to a log.
    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if self.bar.is_hidden() {
            self.log(&mut state);
        } else if (state.done == state.total && state.total > 0)
            || state.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW)
        {
            state.drawn = Some(Instant::now());
            self.draw(&state);
        }
    }

    fn draw(&self, state: &State) {
        let columns = terminal::columns_of_progress();
        let bar = if state.total > 0 { BAR.min(columns / 6) } else { 0 };
        let template = if bar > 0 { format!("{{bar:{bar}}} {{msg}}") } else { "{msg}".to_string() };
        // The last column stays free: some terminals wrap there. The message comes before the bar, since each call may
        // draw.
        self.bar.set_message(fitted(&self.parts(state), columns.saturating_sub(bar + 2)));
        set_template(&self.bar, &template);
        self.bar.set_length(state.total as u64);
        self.bar.set_position(state.done as u64);
        self.bar.tick();
    }

    fn parts(&self, state: &State) -> Vec<String> {
        let mut parts = Vec::new();
        if state.total > 0 {
            parts.push(format!("{}/{} {}", state.done, state.total, self.unit));
            if let Some((rate, left)) = state.rate_and_left(self.unit) {
                parts.extend([rate, format!("{} left", duration(left))]);
            }
            parts.extend(state.details.iter().cloned());
            parts.push(self.work.clone());
        } else {
            parts.push(self.work.clone());
            parts.extend(state.details.iter().cloned());
        }
        parts
    }

    /// Writes a line to a log, if the last one is old enough.
    fn log(&self, state: &mut State) {
        let due = || state.logged.elapsed().as_secs_f64() >= log_seconds();
        if !terminal::shows_progress() || (state.done == state.total && state.total > 0) || !due() {
            return;
        }
        if state.total == 0 && state.details.is_empty() {
            return;
        }
        state.logged = Instant::now();
        let mut parts = Vec::new();
        if let Some(percent) = (100 * state.done).checked_div(state.total) {
            parts.push(format!("{} of {} {} ({percent} %)", state.done, state.total, self.unit));
            if let Some((rate, left)) = state.rate_and_left(self.unit) {
                parts.extend([rate, format!("{} left", duration(left))]);
            }
        }
        parts.extend(state.details.iter().cloned());
        streams::write_error(format_args!("{}: {}\n", self.work, parts.join(", ")));
    }
}

fn set_template(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The details that are not empty.
fn shown<const N: usize>(details: [String; N]) -> Vec<String> {
    details.into_iter().filter(|detail| !detail.is_empty()).collect()
}

impl State {
    fn set(&mut self, done: usize, total: usize) {
        self.before.get_or_insert(done);
        (self.done, self.total) = (done, total.max(done));
    }

    /// Rate with its unit, and the seconds that remain; `None` before the first unit of this session.
    fn rate_and_left(&self, unit: &str) -> Option<(String, f64)> {
        if let Some(pace) = &self.pace {
            return Some(pace.clone());
        }
        let done = self.done - self.before.unwrap_or(0).min(self.done);
        let per_second = done as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        (done > 0).then(|| (format!("{} {unit}/s", rate(per_second)), (self.total - self.done) as f64 / per_second))
    }
}

/// The parts that fit into `width`, the first ones first.
fn fitted(parts: &[String], width: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if !line.is_empty() && measure_text_width(&line) + gap.len() + measure_text_width(part) > width {
            continue;
        }
        line = line + gap + part;
    }
    truncate_str(&line, width, "…").into_owned()
}

fn log_seconds() -> f64 {
    let seconds = std::env::var("OFA_PROGRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    seconds.filter(|seconds: &f64| *seconds >= 0.0).unwrap_or(LOG_SECONDS)
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

/// A number with its noun: 1 thread, 2 threads.
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
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
    fn details_that_do_not_fit_are_left_out_whole() {
        let parts = ["3/9 steps", "1.50 steps/s", "4s left", "größe"].map(String::from);
        assert_eq!(fitted(&parts, 80), "3/9 steps  1.50 steps/s  4s left  größe");
        assert_eq!(fitted(&parts, 39), "3/9 steps  1.50 steps/s  4s left  größe");
        assert_eq!(fitted(&parts, 38), "3/9 steps  1.50 steps/s  4s left");
        assert_eq!(fitted(&parts, 18), "3/9 steps  4s left");
        assert_eq!(fitted(&parts, 12), "3/9 steps");
        assert_eq!(fitted(&parts, 5), "3/9 …");
    }

    #[test]
    fn rate_and_remaining_time_are_of_this_session() {
        let now = Instant::now();
        let state = |done, before| State {
            done,
            total: 100,
            before: Some(before),
            began: now.checked_sub(Duration::from_secs(10)).unwrap(),
            pace: None,
            details: Vec::new(),
            drawn: None,
            logged: now,
        };
        let (rate, left) = state(60, 40).rate_and_left("subnets").unwrap();
        let number: f64 = rate.strip_suffix(" subnets/s").unwrap().parse().unwrap();
        assert!((1.5..=2.0).contains(&number) && (20.0..27.0).contains(&left), "{rate} {left}");
        assert_eq!(state(40, 40).rate_and_left("subnets"), None);
        assert_eq!((counted(1, "thread"), counted(2, "thread")), ("1 thread".into(), "2 threads".into()));
    }

    #[test]
    fn short_times_and_slow_rates_are_not_zero() {
        let shown = [0.0, 1e-5, 0.04, 0.9994, 0.9996, 3.25, 9.94, 9.96, 59.6, 754.0, 7230.0].map(duration);
        assert_eq!(shown, ["0s", "1ms", "40ms", "999ms", "1.0s", "3.2s", "9.9s", "10s", "1m00s", "12m34s", "2h00m"]);
        assert_eq!([0.014, 0.4, 9.99, 23.44, 1234.5].map(rate), ["0.01", "0.40", "9.99", "23.4", "1234"]);
    }
}
