//! Measuring a device profile.
//!
//! 1. *Layers.* For every combination of a block's choices a network of full depth has that combination in all its
//!    blocks (with elastic widths one for every pair of neighbouring widths); such networks at all resolutions hold
//!    every distinct layer of the space. They run in turn, round after round, timed layer by layer; each visit's first
//!    run does not count. A layer's time is the median over all its occurrences.
//! 2. *Subnets.* The smallest, the largest and random subnets are run end to end, interleaved. Some fit the
//!    calibration, the others check it.
//!
//! 3. *A fixed network*, the smallest subnet, is timed in each round. Its times say whether the machine changed speed.
//!
//! Half of the layer rounds run before the subnets and half after them, and calibration and check subnets alternate, so
//! that a machine that changes speed meanwhile affects all of them alike.

use super::conditions::Moment;
use super::unfinished::Unfinished;
use super::{
    Calibration, Check, CheckedSubnet, Conditions, DeviceProfile, FORMAT, Hardware, LayerSpec, LayerTime, VERSION,
    layers,
};
use crate::latency::{Budget, SystemClock, measure_interleaved, median, milliseconds};
use crate::model::NumberType;
use crate::quantise::QuantisedNetwork;
use crate::runtime::StaticNetwork;
use crate::{Error, Result, cost};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::dimension::At;
use ofa_supernet::space::{NetworkSpec, SearchSpace, Subnet};
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Bytes of weights in memory at one time. More subnets are measured in groups, each with subnets of both kinds; more
/// networks of the layer phase are rebuilt in each round.
const GROUP_BYTES: u64 = 512 << 20;

/// Untimed runs after another network was measured: the first ones fetch the weights. With one of them the smallest
/// images, which come first, took 12 % longer.
const FIRST_RUNS: usize = 8;

/// Timed runs of the fixed network in each round.
const FIXED_RUNS: usize = 9;

/// Settings of a profile measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileOptions {
    /// Name of the device.
    pub name: String,
    /// Number of classes of the measured networks.
    pub classes: usize,
    /// Number of threads that a network runs on.
    pub threads: usize,
    /// Images per run.
    pub batch: usize,
    /// Number of visits to every network of the layer phase.
    pub rounds: usize,
    /// Measured runs per visit.
    pub visit: usize,
    /// Number of subnets that fit the calibration, including the smallest and the largest.
    pub calibration_subnets: usize,
    /// Number of other subnets, which check the calibration.
    pub check_subnets: usize,
    /// Duration of measuring the subnets; `time` is per subnet.
    pub budget: Budget,
    /// Seed of weights, images and subnets.
    pub seed: u64,
    /// Number type that the networks compute in: f32 or int8.
    pub number_type: NumberType,
}

impl ProfileOptions {
    /// Defaults: one thread, one image; 15 rounds of 3 runs; 20 subnets for calibration and 20 for the check.
    pub fn new(name: impl Into<String>, classes: usize) -> Self {
        ProfileOptions {
            name: name.into(),
            classes,
            threads: 1,
            batch: 1,
            rounds: 15,
            visit: 3,
            calibration_subnets: 20,
            check_subnets: 20,
            budget: Budget { min_samples: 30, max_samples: 500, time: Duration::from_millis(400), visit: 3 },
            seed: 0,
            number_type: NumberType::F32,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("classes", self.classes),
            ("threads", self.threads),
            ("batch", self.batch),
            ("rounds", self.rounds),
            ("visit", self.visit),
            ("calibration_subnets", self.calibration_subnets),
            ("check_subnets", self.check_subnets),
        ] {
            if value == 0 {
                return Err(Error::Measurement(format!("{name} is 0; it must be at least 1")));
            }
        }
        if !matches!(self.number_type, NumberType::F32 | NumberType::Int8) {
            let message =
                format!("networks do not compute in {}; the number type must be f32 or int8", self.number_type);
            return Err(Error::Measurement(message));
        }
        Ok(())
    }

    /// The network of `spec` with random weights.
    fn network(&self, spec: &NetworkSpec) -> Result<StaticNetwork> {
        match self.number_type {
            NumberType::Int8 => StaticNetwork::quantised(&QuantisedNetwork::random(spec, &HashSet::new(), self.seed)?),
            _ => StaticNetwork::random(spec, self.seed),
        }
    }
}

/// A phase of a profile measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The layers, inside networks of full depth.
    Layers,
    /// Whole subnets, for calibration and check.
    Subnets,
}

/// Progress of a profile measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileProgress {
    /// The current phase.
    pub phase: Phase,
    /// Number of finished steps of this phase (visits of a network, or percent of the time).
    pub done: usize,
    /// Number of all steps of this phase.
    pub total: usize,
}

/// Callback for every step; `Break` ends the measurement with [`ofa_supernet::Error::Interrupted`].
pub type Progress<'a> = dyn FnMut(ProfileProgress) -> ControlFlow<()> + Send + 'a;

/// Measures this machine's profile for `space`, by the method described at the module.
///
/// With a path in `unfinished`, results are stored there after each round, and an interrupted measurement resumes from
/// that file. The caller removes the file when it saves the profile.
///
/// # Errors
/// Impossible options, a space with fewer than two subnets, an interruption through `progress`, or a file that cannot
/// be written.
pub fn measure(
    space: &SearchSpace,
    options: &ProfileOptions,
    unfinished: Option<&Path>,
    progress: &mut Progress,
) -> Result<DeviceProfile> {
    options.validate()?;
    space.validate()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build()
        .map_err(|e| Error::Measurement(format!("{} threads cannot be started: {e}", options.threads)))?;
    pool.install(|| {
        let images = random_images(space, options);
        let (calibration_subnets, check_subnets) = choose_subnets(space, options)?;
        let mut subnets = calibration_subnets.clone();
        subnets.extend(check_subnets.iter().cloned());
        let mut networks = LayerNetworks::new(space, options)?;
        let mut done = Unfinished::new(space, options, networks.layers.len());
        if let Some(path) = unfinished {
            done = done.or_saved(path, options.rounds, subnets.len());
        }
        let before = Moment::now();
        let smallest = space.network(&space.smallest(), options.classes)?;
        let mut fixed = options.network(&smallest)?;
        let keep = |done: &Unfinished| unfinished.map_or(Ok(()), |path| done.save(path));
        for round in 0..=options.rounds {
            if round == options.rounds.div_ceil(2) && done.subnets.is_none() {
                done.subnets = Some(measure_subnets(space, options, &images, &subnets, progress)?);
                keep(&done)?;
            }
            if (done.rounds..options.rounds).contains(&round) {
                done.fixed.push(time_fixed(&mut fixed, options, &images)?);
                networks.measure(round, options, &images, &mut done.layers, progress)?;
                done.rounds = round + 1;
                keep(&done)?;
            }
        }
        let measured = done.subnets.unwrap_or_default();

        let mut profile = DeviceProfile {
            format: FORMAT.into(),
            version: VERSION,
            name: options.name.clone(),
            hardware: Some(Hardware::detect(options.threads)),
            engine: None,
            conditions: Some(Conditions::between(&before, &Moment::now(), done.fixed)),
            space: space.clone(),
            classes: options.classes,
            batch: options.batch,
            number_type: options.number_type,
            method: method(options, calibration_subnets.len(), check_subnets.len()),
            table: networks.table(done.layers),
            calibration: Calibration { overhead_ms: 0.0, scale: 1.0 },
            check: None,
            index: OnceLock::new(),
        };
        let mut predicted = Vec::with_capacity(subnets.len());
        for subnet in &subnets {
            predicted.push(profile.latency_ms(&space.network(subnet, options.classes)?)?);
        }
        let count = calibration_subnets.len();
        let pairs: Vec<(f64, f64)> = predicted.iter().copied().zip(measured.iter().copied()).take(count).collect();
        profile.calibration = Calibration::fit(&pairs).expect("there is a calibration subnet");
        let checked = check_subnets.into_iter().zip(predicted[count..].iter().zip(&measured[count..]));
        let checked = checked.map(|(subnet, (&layers_ms, &measured_ms))| CheckedSubnet {
            subnet,
            predicted_ms: profile.calibration.predict(layers_ms),
            measured_ms,
        });
        profile.check = Check::of(checked.collect());
        Ok(profile)
    })
}

/// Median milliseconds of the fixed network, whose times show whether the machine changes meanwhile.
fn time_fixed(network: &mut StaticNetwork, options: &ProfileOptions, images: &[f32]) -> Result<f64> {
    let resolution = network.spec().resolution;
    let images = &images[..options.batch * resolution * resolution * 3];
    network.run(images, options.batch)?;
    let mut times = Vec::with_capacity(FIXED_RUNS);
    for _ in 0..FIXED_RUNS {
        let start = Instant::now();
        network.run(images, options.batch)?;
        times.push(milliseconds(start.elapsed()));
    }
    Ok(median(&times).unwrap_or(0.0))
}

/// Bytes needed to measure a profile: the images and the activations of all networks that are in memory at one time.
///
/// # Errors
/// The space is invalid.
pub fn memory(space: &SearchSpace, options: &ProfileOptions) -> Result<u64> {
    let largest = space.network(&space.largest(), options.classes)?;
    let resolution = largest.resolution;
    let subnets = (options.calibration_subnets as u64).saturating_add(options.check_subnets as u64);
    let largest = StaticNetwork::planned_bytes(&largest)?.saturating_mul(subnets);
    let mut bytes = (4 * 3 * resolution as u64 * resolution as u64).saturating_add(largest);
    for choice in space.covering() {
        let mut network = space.network(&choice, options.classes)?;
        network.set_resolution(resolution);
        bytes = bytes.saturating_add(StaticNetwork::planned_bytes(&network)?);
    }
    Ok(bytes.saturating_mul(options.batch as u64))
}

/// Networks that together hold every distinct layer of the space: those of [`covering_subnets`]. Made one by one, so
/// that whoever misses the first layer of a large space has not waited for the last.
pub(super) fn covering_networks(space: &SearchSpace, classes: usize) -> impl Iterator<Item = Result<NetworkSpec>> {
    covering_subnets(space).map(move |subnet| Ok(space.network(&subnet, classes)?))
}

/// The subnets of [`SearchSpace::covering`], each for every size of the images.
pub(super) fn covering_subnets(space: &SearchSpace) -> impl Iterator<Item = Subnet> + use<> {
    let inputs: Vec<_> = space.places().into_iter().filter(|place| place.at == At::Input).collect();
    space.covering().flat_map(move |subnet| {
        let mut subnets = vec![subnet];
        for place in &inputs {
            let with_choices = |subnet: Subnet| {
                (0..place.values.len()).map(move |choice| {
                    let mut subnet = subnet.clone();
                    place.choose(&mut subnet, choice);
                    subnet
                })
            };
            subnets = subnets.into_iter().flat_map(with_choices).collect();
        }
        subnets
    })
}

/// Networks of the layer phase.
struct LayerNetworks {
    /// Each covering network with the indices of its layers; the resolutions of one choice are adjacent.
    specs: Vec<(NetworkSpec, Vec<usize>)>,
    /// A network per choice, resized for each visit, since weights do not depend on the resolution. Empty if all of
    /// them need too much memory; they are then rebuilt in each round.
    networks: Vec<StaticNetwork>,
    /// Distinct layers in the order of their first occurrence, so that equal runs write equal files.
    layers: Vec<LayerSpec>,
    /// Number of resolutions of each choice.
    resolutions: usize,
}

impl LayerNetworks {
    fn new(space: &SearchSpace, options: &ProfileOptions) -> Result<Self> {
        let covering: Vec<NetworkSpec> = covering_networks(space, options.classes).collect::<Result<_>>()?;
        let resolutions = covering.len() / space.covering().len();
        let first_of_choice = || covering.iter().step_by(resolutions);
        let bytes = weight_bytes(first_of_choice());
        let networks = match bytes <= GROUP_BYTES {
            true => first_of_choice().map(|spec| options.network(spec)).collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let mut distinct: Vec<LayerSpec> = Vec::new();
        let mut numbers: HashMap<LayerSpec, usize> = HashMap::new();
        let mut number = |layer: LayerSpec| {
            *numbers.entry(layer).or_insert_with_key(|layer| {
                distinct.push(layer.clone());
                distinct.len() - 1
            })
        };
        let specs = covering
            .into_iter()
            .map(|spec| {
                let numbers = layers(&spec).map(&mut number).collect();
                (spec, numbers)
            })
            .collect();
        Ok(LayerNetworks { specs, networks, layers: distinct, resolutions })
    }

    /// Runs one round and adds the times of each layer to `samples`.
    fn measure(
        &mut self,
        round: usize,
        options: &ProfileOptions,
        images: &[f32],
        samples: &mut [Vec<f64>],
        progress: &mut Progress,
    ) -> Result<()> {
        let total = options.rounds * self.specs.len();
        let mut done = round * self.specs.len();
        let mut times = Vec::new();
        for (choice, specs) in self.specs.chunks(self.resolutions).enumerate() {
            let mut made = None;
            let network = match self.networks.get_mut(choice) {
                Some(network) => network,
                None => made.insert(options.network(&specs[0].0)?),
            };
            for (place, (spec, numbers)) in specs.iter().enumerate() {
                network.set_resolution(spec.resolution)?;
                let images = &images[..options.batch * spec.resolution * spec.resolution * 3];
                for _ in 0..if place == 0 { FIRST_RUNS } else { 1 } {
                    network.run(images, options.batch)?;
                }
                for _ in 0..options.visit {
                    network.run_timed(images, options.batch, &mut times)?;
                    for (&number, &time) in numbers.iter().zip(&times) {
                        samples[number].push(time);
                    }
                }
                done += 1;
                report(progress, Phase::Layers, done, total)?;
            }
        }
        Ok(())
    }

    fn table(self, samples: Vec<Vec<f64>>) -> Vec<LayerTime> {
        let entry = |(layer, samples): (LayerSpec, Vec<f64>)| {
            // A clock coarser than the layer may measure zero; times in a table must be positive.
            let ms = median(&samples).unwrap_or(0.0).max(1e-6);
            LayerTime { layer, resolution: None, ms, samples: samples.len(), estimated: false }
        };
        self.layers.into_iter().zip(samples).map(entry).collect()
    }
}

/// Bytes of the weights of several networks together.
fn weight_bytes<'a>(networks: impl Iterator<Item = &'a NetworkSpec>) -> u64 {
    networks.map(|network| cost::parameters(network).saturating_mul(4)).fold(0, u64::saturating_add)
}

/// Median end-to-end times of `subnets`, in milliseconds.
fn measure_subnets(
    space: &SearchSpace,
    options: &ProfileOptions,
    images: &[f32],
    subnets: &[Subnet],
    progress: &mut Progress,
) -> Result<Vec<f64>> {
    let specs = subnets.iter().map(|subnet| space.network(subnet, options.classes));
    let specs: Vec<NetworkSpec> = specs.collect::<ofa_supernet::Result<_>>()?;
    let bytes = weight_bytes(specs.iter());
    let groups = (bytes.div_ceil(GROUP_BYTES) as usize).clamp(1, subnets.len());
    let mut measured = vec![0.0; subnets.len()];
    for group in 0..groups {
        // Every `groups`-th subnet, so that each group has calibration and check subnets.
        let members: Vec<usize> = (group..subnets.len()).step_by(groups).collect();
        let networks = members.iter().map(|&member| options.network(&specs[member]));
        let mut networks: Vec<StaticNetwork> = networks.collect::<Result<_>>()?;
        let budget = Budget { time: options.budget.time * members.len() as u32, ..options.budget };
        let start = Instant::now();
        let mut last = None;
        let times = measure_interleaved(&mut SystemClock::new(), members.len(), 2, &budget, &mut || Ok(()), |index| {
            let resolution = networks[index].spec().resolution;
            let images = &images[..options.batch * resolution * resolution * 3];
            // The first call of a visit is not timed.
            if last.replace(index) != Some(index) {
                let part = start.elapsed().as_secs_f64() / budget.time.as_secs_f64().max(1e-3);
                let percent = (100.0 * (group as f64 + part.min(1.0)) / groups as f64) as usize;
                report(progress, Phase::Subnets, percent.min(99), 100)?;
                for _ in 1..FIRST_RUNS {
                    networks[index].run(images, options.batch)?;
                }
            }
            networks[index].run(images, options.batch)?;
            Ok(())
        })?;
        for (&member, times) in members.iter().zip(&times) {
            measured[member] = median(times).unwrap_or(0.0).max(1e-6);
        }
    }
    report(progress, Phase::Subnets, 100, 100)?;
    Ok(measured)
}

/// Chooses different subnets for calibration and for the check; fewer than requested if the space is small.
fn choose_subnets(space: &SearchSpace, options: &ProfileOptions) -> Result<(Vec<Subnet>, Vec<Subnet>)> {
    let wanted = options.calibration_subnets.saturating_add(options.check_subnets);
    let mut chosen = vec![space.smallest()];
    if space.largest() != chosen[0] {
        chosen.push(space.largest());
    }
    let attempts = (20 * wanted as u64).max(1000);
    for attempt in 0..attempts {
        if chosen.len() >= wanted.max(3) {
            break;
        }
        let subnet = space.sample(&mut generator(options.seed, Stream::ProfileSubnets, &[attempt]));
        if !chosen.contains(&subnet) {
            chosen.push(subnet);
        }
    }
    if chosen.len() < 2 {
        return Err(Error::Measurement(format!(
            "the space '{}' has a single subnet; there is nothing to predict; measure it with `ofa bench`",
            space.name
        )));
    }
    let calibration = options.calibration_subnets.min(chosen.len() - 1).max(1);
    let check = chosen.split_off(calibration);
    Ok((chosen, check.into_iter().take(options.check_subnets).collect()))
}

fn random_images(space: &SearchSpace, options: &ProfileOptions) -> Vec<f32> {
    let resolution = space.largest().resolution;
    let mut rng = generator(options.seed, Stream::RandomImages, &[]);
    (0..options.batch * resolution * resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Reports progress; a request to stop is an error.
pub(super) fn report(progress: &mut Progress, phase: Phase, done: usize, total: usize) -> Result<()> {
    match progress(ProfileProgress { phase, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ofa_supernet::Error::Interrupted.into()),
    }
}

fn method(options: &ProfileOptions, calibration: usize, check: usize) -> String {
    format!(
        "Layer times: medians over {} interleaved rounds of {} timed runs (after uncounted ones) of full-depth \
         networks, one for each resolution, kernel size, expand ratio and pair of elastic widths, batch {}. Latency = overhead + scale * sum of \
         layer times, fitted on {calibration} subnets measured end to end (least absolute relative error) and checked \
         on {check} others, medians of interleaved runs. Seed {}.",
        options.rounds, options.visit, options.batch, options.seed
    )
}
