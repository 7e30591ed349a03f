//! Measuring times, and their statistics.
//!
//! Several subjects are measured *interleaved*: every round visits each of them, so that a machine that slows down or
//! speeds up during the measurement does so to all alike. A visit's first run is not counted, because it finds the
//! caches full of another subject's weights. The clock is an argument, so all of it is tested without timing.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Limits on the length of a measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Measured runs of each subject, at least.
    pub min_samples: usize,
    /// Measured runs of each subject, at most.
    pub max_samples: usize,
    /// Time for all subjects together, warm-up excluded; spent before `min_samples` are there, measuring goes on.
    pub time: Duration,
    /// Measured runs per visit.
    pub visit: usize,
}

impl Default for Budget {
    /// 50 to 1000 runs, 2 seconds, 5 runs per visit.
    fn default() -> Self {
        Budget { min_samples: 50, max_samples: 1000, time: Duration::from_secs(2), visit: 5 }
    }
}

/// Something that tells the time since a fixed moment.
pub trait Clock {
    /// Time since that moment.
    fn now(&mut self) -> Duration;
}

/// The operating system's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        SystemClock(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&mut self) -> Duration {
        self.0.elapsed()
    }
}

/// Times of `f` in milliseconds, after `warmup` runs that are not counted.
///
/// # Errors
/// Errors of `f`, and an empty budget.
pub fn measure(warmup: usize, budget: &Budget, mut f: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = measure_interleaved(&mut SystemClock::new(), 1, warmup, budget, &mut || Ok(()), |_| f())?;
    Ok(times.pop().expect("one subject was asked for"))
}

/// Times of `f(0)`, `f(1)`, ..., `f(subjects - 1)` in milliseconds, interleaved, one list per subject, all of one
/// length.
///
/// Each subject first runs `warmup` times uncounted; later every visit starts with one uncounted run (see the module's
/// text). `between` is called before each run and not timed: an error of it ends a measurement whose runs take long.
///
/// # Errors
/// An error of `f` or `between`, and an empty budget.
pub fn measure_interleaved(
    clock: &mut impl Clock,
    subjects: usize,
    warmup: usize,
    budget: &Budget,
    between: &mut dyn FnMut() -> Result<()>,
    mut f: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    if budget.max_samples == 0 || budget.visit == 0 || budget.min_samples > budget.max_samples {
        return Err(Error::Measurement(format!(
            "at least {} and at most {} runs, {} a visit, is impossible; every number must be positive, and the first no \
             larger than the second",
            budget.min_samples, budget.max_samples, budget.visit
        )));
    }
    for subject in 0..subjects {
        for _ in 0..warmup {
            between()?;
            f(subject)?;
        }
    }
    let mut times = vec![Vec::new(); subjects];
    if subjects == 0 {
        return Ok(times);
    }
    let start = clock.now();
    let mut samples = 0;
    while samples < budget.max_samples {
        if samples >= budget.min_samples.max(1) && clock.now().saturating_sub(start) >= budget.time {
            break;
        }
        let visit = budget.visit.min(budget.max_samples - samples);
        for (subject, times) in times.iter_mut().enumerate() {
            // A lone subject has no neighbour that could have emptied its caches.
            if subjects > 1 {
                between()?;
                f(subject)?;
            }
            for _ in 0..visit {
                between()?;
                let before = clock.now();
                f(subject)?;
                times.push(milliseconds(clock.now().saturating_sub(before)));
            }
        }
        samples += visit;
    }
    Ok(times)
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The `q`-quantile (`0 <= q <= 1`) with linear interpolation between the two nearest values (NumPy's default): value
/// at position `q * (n - 1)` of the sorted list. `None` for an empty list.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    Some(low + (high - low) * position.fract())
}

/// The median; `None` for an empty list.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Percentiles of measured times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 90 % of the runs were at least as fast.
    pub p90: f64,
    /// 99 % of the runs were at least as fast.
    pub p99: f64,
}

impl Percentiles {
    /// Percentiles of a list of times; `None` for an empty list.
    pub fn of(times: &[f64]) -> Option<Self> {
        Some(Percentiles { p50: quantile(times, 0.50)?, p90: quantile(times, 0.90)?, p99: quantile(times, 0.99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A clock that only the measured function moves.
    struct Hand<'a>(&'a Cell<u64>);

    impl Clock for Hand<'_> {
        fn now(&mut self) -> Duration {
            Duration::from_millis(self.0.get())
        }
    }

    #[test]
    fn quantiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), Some(2.5));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert!((quantile(&values, 0.9).unwrap() - 3.7).abs() < 1e-12);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
        assert_eq!(Percentiles::of(&[]), None);
    }

    #[test]
    fn subjects_take_turns_and_first_runs_do_not_count() {
        let (time, mut order) = (Cell::new(0), Vec::new());
        let budget = Budget { min_samples: 1, max_samples: 3, time: Duration::from_secs(60), visit: 2 };
        let times = measure_interleaved(&mut Hand(&time), 2, 1, &budget, &mut || Ok(()), |subject| {
            order.push(subject);
            time.set(time.get() + 10 * (subject as u64 + 1));
            Ok(())
        })
        .unwrap();
        assert_eq!(order, [0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(times, [vec![10.0; 3], vec![20.0; 3]]);
    }

    #[test]
    fn the_budget_ends_the_measurement_but_not_before_the_minimum() {
        let run = |min_samples, max_samples, seconds| {
            let time = Cell::new(0);
            let budget = Budget { min_samples, max_samples, time: Duration::from_secs(seconds), visit: 1 };
            let times = measure_interleaved(&mut Hand(&time), 1, 0, &budget, &mut || Ok(()), |_| {
                time.set(time.get() + 1000);
                Ok(())
            });
            times.unwrap()[0].len()
        };
        assert_eq!(run(1, 100, 5), 5);
        assert_eq!(run(8, 100, 5), 8);
        assert_eq!(run(1, 3, 5), 3);
        assert!(measure(0, &Budget { visit: 0, ..Budget::default() }, || Ok(())).is_err());
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let result = measure(0, &Budget::default(), || Err(ofa_supernet::Error::Interrupted.into()));
        assert_eq!(result.unwrap_err().to_string(), "interrupted");
    }

    #[test]
    fn what_happens_between_runs_is_not_timed_and_can_end_the_measurement() {
        let (time, calls) = (Cell::new(0), Cell::new(0));
        let budget = Budget { min_samples: 2, max_samples: 2, time: Duration::ZERO, visit: 2 };
        let measure = |last: usize| {
            calls.set(0);
            let mut between = || {
                calls.set(calls.get() + 1);
                time.set(time.get() + 1000);
                if calls.get() > last { Err(ofa_supernet::Error::Interrupted.into()) } else { Ok(()) }
            };
            measure_interleaved(&mut Hand(&time), 2, 1, &budget, &mut between, |_| {
                time.set(time.get() + 1);
                Ok(())
            })
        };
        // A warm-up run, an uncounted run and two timed ones of each subject.
        assert_eq!(measure(8).unwrap(), [vec![1.0; 2], vec![1.0; 2]]);
        for last in 0..8 {
            assert_eq!(measure(last).unwrap_err().to_string(), "interrupted", "{last}");
            assert_eq!(calls.get(), last + 1);
        }
    }
}
