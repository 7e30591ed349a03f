//! Profiles of other engines: a command measures whole networks, from whose times those of layers are solved for.
//!
//! | file | concern |
//! | --- | --- |
//! | `command` | running a command on a model and reading the time that it prints |
//! | `presets` | engines whose command lines and output are known |
//! | `model_file` | networks with random weights as files |
//! | `layer_costs` | layers as columns of linear equations, with the costs that explain their times |
//! | `design` | which networks to measure |
//! | `additive` | times of layers from times of networks |
//! | `unfinished` | results so far |
//!
//! Networks are measured in groups, each in rounds of random order with a fixed network (the smallest) between them. A
//! network's time is the smallest of its rounds, since other work on the machine only adds to it; networks whose two
//! smallest times differ are visited in further rounds.
//! After each group the layers' times are solved for, and random subnets that the solution does not know tell its
//! error; the measurement ends when that is small enough.

mod additive;
mod command;
mod design;
mod layer_costs;
mod model_file;
mod presets;
mod unfinished;

pub use command::{EngineCommand, EngineRecord, Reader, Unit};
pub use presets::{PRESETS, Preset};

use super::conditions::Moment;
use super::measure::{Progress, covering_subnets, report};
use super::{
    Calibration, Check, CheckedSubnet, Conditions, DeviceProfile, FORMAT, Hardware, LayerTime, Phase, ProfileOptions,
    ProfileProgress, VERSION,
};
use crate::{Error, Result};
use additive::{Prior, layer_times};
use command::Place;
use layer_costs::{LayerCosts, Sum};
use ofa_supernet::files;
use ofa_supernet::lock::{LOCK_FILE, Lock, Sharing};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{SearchSpace, Subnet};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;
use unfinished::Unfinished;

/// Random networks among which the measured ones are chosen.
const CANDIDATES: usize = 500;

/// Of the networks that hold every layer, at most so many are candidates.
const COVERING: usize = 100;

/// Networks of the first group, and of each one after it.
const GROUPS: [usize; 2] = [40, 20];

/// Networks between two times of the fixed network.
const BETWEEN_FIXED: usize = 12;

/// Relative difference of the two smallest times of a network up to which they agree.
const AGREEMENT: f64 = 0.04;

/// Most that the 95th percentile of the errors may be at the end, as a multiple of the median: of normal errors it is
/// 2.9 times as large. A median alone is small long before rare layers are known.
const TAIL: f64 = 2.5;

/// Engine and duration of a measurement.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The engine.
    pub command: EngineCommand,
    /// Median relative error of predictions at which to stop, if the 95th percentile is at most 2.5 times as large.
    pub error: f64,
    /// Networks to measure at most, without those of the check.
    pub samples: usize,
}

impl EngineOptions {
    /// Whether the errors of a check are small enough.
    pub fn is_met(&self, check: &Check) -> bool {
        check.median_error <= self.error && check.p95_error <= TAIL * self.error
    }
}

/// A subnet with its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    subnet: Subnet,
    /// Milliseconds in each round.
    ms: Vec<f64>,
}

impl Network {
    /// The smallest time, in which other work disturbed least.
    fn least(&self) -> f64 {
        self.ms.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Whether a second time confirms the smallest one.
    fn is_confirmed(&self) -> bool {
        let least = self.least();
        self.ms.iter().filter(|&&ms| ms <= least * (1.0 + AGREEMENT)).count() > 1
    }
}

/// Measures a profile for `space` with another engine, by the method described at the module. `work` is a folder for
/// models and output, which is removed at the end.
///
/// With a path in `unfinished`, each time is stored there, and an interrupted measurement resumes from that file. The
/// caller removes the file when it saves the profile.
///
/// # Errors
/// Impossible options, a space with fewer than three subnets, a command that fails, an interruption through `progress`,
/// or a file that cannot be written.
pub fn measure_engine(
    space: &SearchSpace,
    options: &ProfileOptions,
    engine: &EngineOptions,
    (work, unfinished): (&Path, Option<&Path>),
    progress: &mut Progress,
) -> Result<DeviceProfile> {
    files::make_folder(work)?;
    let _lock = Lock::take(work, Sharing::Alone, "ofa profile --engine")?;
    let (name, text) = presets::SCRIPT;
    let script = work.join(name);
    let mut time = |subnet: &Subnet, control: &mut dyn FnMut() -> ControlFlow<()>| {
        // What an earlier network left is not measured again where a command writes nothing.
        clear(work)?;
        fs::write(&script, text).map_err(|error| ofa_supernet::Error::file(&script, error))?;
        let model = model_file::write(work, space, subnet, options, &engine.command)?;
        let place =
            Place { model: &model, folder: work, script: &script, threads: options.threads, batch: options.batch };
        engine.command.run(&place, control)
    };
    let profile = measure_with(space, options, engine, unfinished, &mut time, progress);
    let _ = fs::remove_dir_all(work);
    profile
}

/// Removes everything but the lock.
fn clear(folder: &Path) -> Result<()> {
    let failed = |error| ofa_supernet::Error::file(folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == LOCK_FILE {
            continue;
        }
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let path = entry.path();
        if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(failed)?;
    }
    Ok(())
}

/// Measures a subnet: its milliseconds, and the engine's version where that is printed.
type Time<'a> = dyn FnMut(&Subnet, &mut dyn FnMut() -> ControlFlow<()>) -> Result<(f64, Option<String>)> + 'a;

/// [`measure_engine`] with the measurement of a single network as a function.
fn measure_with(
    space: &SearchSpace,
    options: &ProfileOptions,
    engine: &EngineOptions,
    unfinished: Option<&Path>,
    time: &mut Time,
    progress: &mut Progress,
) -> Result<DeviceProfile> {
    options.validate()?;
    space.validate()?;
    let layers = LayerCosts::new(space, options.classes)?;
    let (check, chosen) = choose(space, options, engine.samples, &layers)?;
    let checks = check.len();
    let networks = check.into_iter().chain(chosen).map(|subnet| Network { subnet, ms: Vec::new() }).collect();
    let mut done = Unfinished::new(space, options, engine, networks);
    if let Some(path) = unfinished {
        done = done.or_saved(path);
    }
    let before = Moment::now();
    let all = done.networks.len();
    let mut start = 0;
    loop {
        let size = if start == 0 { checks + GROUPS[0] } else { GROUPS[1] };
        let end = all.min(start + size);
        let mut visits = Visits { options, group: start..end, all, done: &mut done, unfinished };
        visits.measure(&space.smallest(), time, progress)?;
        start = end;
        let profile = profile_of(space, options, engine, &layers, (&done, checks, end), &before)?;
        if end == all || profile.check.as_ref().is_some_and(|check| engine.is_met(check)) {
            return Ok(profile);
        }
    }
}

/// Measurements of a group of networks.
struct Visits<'a> {
    options: &'a ProfileOptions,
    group: std::ops::Range<usize>,
    all: usize,
    done: &'a mut Unfinished,
    unfinished: Option<&'a Path>,
}

impl Visits<'_> {
    /// Measures each network of the group once per round, unless it was measured in that round already. As many rounds
    /// again visit the networks whose times are not confirmed.
    fn measure(&mut self, fixed: &Subnet, time: &mut Time, progress: &mut Progress) -> Result<()> {
        let rounds = self.options.rounds;
        let mut since_fixed = BETWEEN_FIXED;
        let further = if rounds > 1 { 2 * rounds } else { rounds };
        for round in 0..further {
            let mut order: Vec<usize> = self.group.clone().collect();
            let position = [self.group.start as u64, round as u64];
            order.shuffle(&mut generator(self.options.seed, Stream::ProfileOrder, &position));
            for (place, index) in order.into_iter().enumerate() {
                let network = &self.done.networks[index];
                if network.ms.len() > round || (round >= rounds && network.is_confirmed()) {
                    continue;
                }
                let passed = self.group.start * rounds + round.min(rounds - 1) * self.group.len() + place;
                let mut go_on = || progress(progress_at(passed, self.all * rounds));
                if since_fixed == BETWEEN_FIXED {
                    let (ms, _) = time(fixed, &mut go_on)?;
                    self.done.fixed.push(ms);
                    since_fixed = 0;
                }
                let subnet = self.done.networks[index].subnet.clone();
                let (ms, version) = time(&subnet, &mut go_on)?;
                since_fixed += 1;
                self.done.networks[index].ms.push(ms);
                if let (Some(before), Some(now)) = (&self.done.version, &version)
                    && before != now
                {
                    let message = format!(
                        "the engine's version changed from {before} to {now}, so the times so far are dropped; run the \
                         same command again"
                    );
                    self.unfinished.map_or(Ok(()), files::remove_file)?;
                    return Err(Error::Measurement(message));
                }
                self.done.version = version.or(self.done.version.take());
                if let Some(path) = self.unfinished {
                    self.done.save(path)?;
                }
                report(progress, Phase::Subnets, passed + 1, self.all * rounds)?;
            }
        }
        Ok(())
    }
}

fn progress_at(done: usize, total: usize) -> ProfileProgress {
    ProfileProgress { phase: Phase::Subnets, done, total }
}

/// The profile from the networks measured so far: the first `checks` check it, those up to `end` make it.
fn profile_of(
    space: &SearchSpace,
    options: &ProfileOptions,
    engine: &EngineOptions,
    layers: &LayerCosts,
    (done, checks, end): (&Unfinished, usize, usize),
    before: &Moment,
) -> Result<DeviceProfile> {
    let made_of = &done.networks[checks..end];
    let sums = made_of.iter().map(|network| layers.sum(&space.network(&network.subnet, options.classes)?));
    let sums: Vec<Sum> = sums.collect::<Result<_>>()?;
    let times: Vec<f64> = made_of.iter().map(Network::least).collect();
    let solved = layer_times(&layers.costs, &sums, &times)
        .ok_or_else(|| Error::Measurement("the times of networks determine no times of layers".into()))?;
    let mut samples = vec![0; solved.len()];
    sums.iter().flatten().for_each(|(layer, _)| samples[*layer] += 1);
    let entry = |(index, layer): (usize, &super::LayerSpec)| LayerTime {
        layer: layer.clone(),
        resolution: None,
        ms: solved[index],
        samples: samples[index],
        estimated: samples[index] == 0,
    };
    let is_local = Preset::named(&engine.command.name).is_some_and(|preset| preset.is_local);
    let mut profile = DeviceProfile {
        format: FORMAT.into(),
        version: VERSION,
        name: options.name.clone(),
        // A command may measure anywhere.
        hardware: is_local.then(|| Hardware::detect(options.threads)),
        engine: Some(EngineRecord {
            name: engine.command.name.clone(),
            command: engine.command.words.join(" "),
            version: done.version.clone(),
            threads: options.threads,
        }),
        conditions: Some(match is_local {
            true => Conditions::between(before, &Moment::now(), done.fixed.clone()),
            false => Conditions::of_another_machine(done.fixed.clone()),
        }),
        space: space.clone(),
        classes: options.classes,
        batch: options.batch,
        number_type: options.number_type,
        method: method(options, made_of.len(), checks),
        table: layers.layers.iter().enumerate().map(entry).collect(),
        calibration: Calibration { overhead_ms: solved[layers.overhead()], scale: 1.0 },
        check: None,
        index: OnceLock::new(),
    };
    let checked = done.networks[..checks].iter().map(|network| {
        let predicted_ms = profile.latency_ms(&space.network(&network.subnet, options.classes)?)?;
        Ok(CheckedSubnet { subnet: network.subnet.clone(), predicted_ms, measured_ms: network.least() })
    });
    let checked: Vec<CheckedSubnet> = checked.collect::<Result<_>>()?;
    profile.check = Check::of(checked);
    Ok(profile)
}

/// Random subnets for the check, and the subnets to measure in their order.
fn choose(
    space: &SearchSpace,
    options: &ProfileOptions,
    samples: usize,
    layers: &LayerCosts,
) -> Result<(Vec<Subnet>, Vec<Subnet>)> {
    let mut seen: HashSet<String> = HashSet::new();
    let mut is_new = |subnet: &Subnet| seen.insert(subnet.to_string());
    let mut candidates = vec![space.smallest(), space.largest()];
    let step = covering_subnets(space).count().div_ceil(COVERING).max(1);
    candidates.extend(covering_subnets(space).step_by(step));
    candidates.retain(&mut is_new);
    let random = options.check_subnets + CANDIDATES.max(samples);
    let attempts = 0..(20 * random as u64).max(1000);
    let drawn = attempts.map(|attempt| space.sample(&mut generator(options.seed, Stream::ProfileSubnets, &[attempt])));
    let mut drawn: Vec<Subnet> = drawn.filter(|subnet| is_new(subnet)).take(random).collect();
    // A small space is divided evenly.
    let checks = options.check_subnets.min(drawn.len().div_ceil(2));
    if checks == 0 {
        let message = format!("the space '{}' has too few subnets to predict; measure them all", space.name);
        return Err(Error::Measurement(message));
    }
    candidates.extend(drawn.split_off(checks));
    let sums = candidates.iter().map(|subnet| layers.sum(&space.network(subnet, options.classes)?));
    let sums: Vec<Sum> = sums.collect::<Result<_>>()?;
    let order = design::order(&Prior::guess(&layers.costs), &sums, samples);
    Ok((drawn, order.into_iter().map(|index| candidates[index].clone()).collect()))
}

fn method(options: &ProfileOptions, networks: usize, checks: usize) -> String {
    format!(
        "Whole networks with random weights, measured by the engine's command in {} rounds of random order, batch {}; \
         the least of each. Layer times and overhead are solved for from {networks} networks (Gaussian process around \
         non-negative factors of multiply-accumulates, values, weights and operations; no time is negative), and \
         checked on {checks} other random subnets. Layers in no measured network are marked as estimated. Seed {}.",
        options.rounds, options.batch, options.seed
    )
}

#[cfg(test)]
mod tests;
