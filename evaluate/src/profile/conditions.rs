//! State of the machine while a profile was measured: what makes times of one machine differ from hour to hour.

use crate::latency::median;
use serde::{Deserialize, Serialize};
use std::process::Command;

/// State of the machine before and after, as far as the system tells, and times of a network that was measured between
/// all others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Policy by which the clock follows the load, such as `performance` or `schedutil`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// Clock of the first of `cores` in MHz before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<[f64; 2]>,
    /// Cores that the program might run on, such as `4-7`: the system may allow fewer than were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<String>,
    /// Flags of a Raspberry Pi that throttled or lacked voltage, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<String>,
    /// Median milliseconds of the smallest subnet in each round.
    pub fixed_ms: Vec<f64>,
}

/// State of the machine at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Moment {
    governor: Option<String>,
    clock_mhz: Option<f64>,
}

impl Moment {
    pub fn now() -> Self {
        // Cores differ on phones: little ones tell nothing about those that measure.
        let core = allowed_cores().and_then(|cores| first_core(&cores)).unwrap_or(0);
        let read = |file: &str| {
            let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{core}/cpufreq/{file}")).ok()?;
            Some(text.trim().to_string()).filter(|text| !text.is_empty())
        };
        let khz = read("scaling_cur_freq").and_then(|text| text.parse::<f64>().ok());
        Moment { governor: read("scaling_governor"), clock_mhz: khz.map(|khz| khz / 1e3) }
    }
}

impl Conditions {
    pub(super) fn between(before: &Moment, after: &Moment, fixed_ms: Vec<f64>) -> Self {
        let clock_mhz = before.clock_mhz.zip(after.clock_mhz).map(|(before, after)| [before, after]);
        Conditions {
            governor: after.governor.clone(),
            clock_mhz,
            cores: allowed_cores(),
            throttled: throttled(),
            fixed_ms,
        }
    }

    /// Conditions of a measurement on a machine of which nothing else is known.
    pub(super) fn of_another_machine(fixed_ms: Vec<f64>) -> Self {
        Conditions { governor: None, clock_mhz: None, cores: None, throttled: None, fixed_ms }
    }

    /// Spread of the fixed network's times: the difference between their 90th and 10th percentile as a part of their
    /// median.
    pub fn spread(&self) -> f64 {
        let mut sorted = self.fixed_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted[(part * (sorted.len() - 1) as f64).round() as usize];
        match median(&sorted) {
            Some(median) if median > 0.0 => (at(0.9) - at(0.1)) / median,
            _ => 0.0,
        }
    }

    /// Change of the fixed network's time from the first third of the rounds to the last.
    pub fn drift(&self) -> f64 {
        let third = self.fixed_ms.len().div_ceil(3);
        let first = median(&self.fixed_ms[..third]);
        let last = median(&self.fixed_ms[self.fixed_ms.len() - third..]);
        first.zip(last).filter(|(first, _)| *first > 0.0).map_or(0.0, |(first, last)| last / first - 1.0)
    }
}

/// The cores that Linux lets this process run on.
pub(super) fn allowed_cores() -> Option<String> {
    cores_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The cores that Linux lets a process run on, from its `/proc/PID/status`.
fn cores_in(status: &str) -> Option<String> {
    status.lines().find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_string()))
}

/// The first core of a list such as `4-7,9`.
fn first_core(cores: &str) -> Option<usize> {
    cores.split(['-', ',']).next()?.parse().ok()
}

/// What the tool of a Raspberry Pi says of throttling, if it is not nothing.
fn throttled() -> Option<String> {
    let output = Command::new("vcgencmd").arg("get_throttled").output().ok()?;
    flags(&String::from_utf8_lossy(&output.stdout))
}

/// The flags in `throttled=0x50005` that are about the present: the low half; the high half is about the time since the
/// start of the system.
fn flags(said: &str) -> Option<String> {
    let text = said.trim().strip_prefix("throttled=")?;
    let bits = u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
    (bits & 0xffff != 0).then(|| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_drift_are_of_the_fixed_networks_times() {
        let with = |times: &[f64]| Conditions::between(&Moment::default(), &Moment::default(), times.to_vec());
        let steady = with(&[2.0, 2.0, 2.0, 2.0]);
        assert_eq!((steady.spread(), steady.drift()), (0.0, 0.0));
        let hot = with(&[1.0, 1.0, 1.2, 1.3, 1.5, 1.5]);
        assert!((hot.drift() - 0.5).abs() < 1e-12 && (hot.spread() - 0.4).abs() < 1e-9, "{}", hot.spread());
        assert_eq!((with(&[]).spread(), with(&[]).drift(), with(&[3.0]).drift()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn cores_are_those_of_the_process() {
        assert_eq!(cores_in("Name:\tofa\nCpus_allowed:\tf0\nCpus_allowed_list:\t4-7\n").as_deref(), Some("4-7"));
        assert_eq!(cores_in("Name:\tofa\n"), None);
        assert_eq!(["4-7,9", "3", "0,2", ""].map(first_core), [Some(4), Some(3), Some(0), None]);
    }

    #[test]
    fn flags_of_the_past_do_not_count() {
        assert_eq!(flags("throttled=0x50005\n").as_deref(), Some("0x50005"));
        assert_eq!(flags("throttled=0x50000\n"), None);
        assert_eq!((flags("throttled=0x0"), flags("error"), flags("")), (None, None, None));
    }
}
