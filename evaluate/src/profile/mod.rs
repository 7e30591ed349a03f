//! Latency table of a device: measured on the device, read by the search.
//!
//! A network's latency is predicted as `overhead + scale * sum of its layers' times` ([`Calibration`]). Layers are
//! measured inside running networks ([`measure`]) rather than separately, so that each finds the caches as its
//! neighbours leave them. A profile is one JSON file that records the results, the method, the hardware, and the error
//! of its predictions. Profiles of other engines ([`measure_engine`]) come from times of whole networks.
//!
//! | file | concern |
//! | --- | --- |
//! | `measure`, `unfinished` | measuring on this machine, and its files until it is done |
//! | `layer` | the keys of a latency table |
//! | `calibration` | from times of layers to that of a network, and the error |
//! | `hardware`, `conditions` | the machine, and its state meanwhile |
//! | `engine` | measuring another engine |
//! | `layer_times`, `published` | tables that were measured elsewhere |
//! | `name` | names of profiles |

mod calibration;
mod conditions;
mod engine;
mod hardware;
mod layer;
mod layer_times;
mod measure;
mod name;
mod published;
mod unfinished;

pub use calibration::{Calibration, Check, CheckedSubnet};
pub use conditions::Conditions;
pub use engine::{EngineCommand, EngineOptions, EngineRecord, PRESETS, Preset, Reader, Unit, measure_engine};
pub use hardware::Hardware;
pub use layer::{ClassifierSpec, HeadSpec, LayerSpec, layers};
pub use layer_times::{import_csv, layers_csv};
pub use measure::{Phase, ProfileOptions, ProfileProgress, measure, memory};
pub use name::{check_name, check_plain};
pub use published::import;

use crate::model::NumberType;
use crate::{Error, Result};
use ofa_supernet::files;
use ofa_supernet::space::{NetworkSpec, SearchSpace};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// Value of the `format` field.
pub const FORMAT: &str = "ofa-device-profile";
/// Version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The latency table of one device for one search space.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// Always [`FORMAT`].
    pub format: String,
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Name that the user gave to the device.
    pub name: String,
    /// Hardware of the measurement; unknown for imported tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// The engine that was measured, where it is not the runtime of `ofa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineRecord>,
    /// State of the machine meanwhile; unknown for imported tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Conditions>,
    /// The search space whose layers the table holds.
    pub space: SearchSpace,
    /// Number of classes of the measured networks.
    pub classes: usize,
    /// Images per run.
    pub batch: usize,
    /// Number type that the networks computed in.
    #[serde(default = "f32_numbers", skip_serializing_if = "is_f32")]
    pub number_type: NumberType,
    /// Description of the method, for readers.
    pub method: String,
    /// Times of every distinct layer of the space. Private, so that they cannot change under `index`.
    table: Vec<LayerTime>,
    /// Map from the sum of layer times to a network's latency.
    pub calibration: Calibration,
    /// Error of the predictions; unknown for imported tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Times by layer, built at the first look-up.
    #[serde(skip)]
    index: OnceLock<HashMap<(Option<usize>, LayerSpec), f64>>,
}

fn f32_numbers() -> NumberType {
    NumberType::F32
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_f32(number_type: &NumberType) -> bool {
    *number_type == NumberType::F32
}

/// The time of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerTime {
    /// The timed layer.
    pub layer: LayerSpec,
    /// Resolution of the measured networks, if the table has a separate time for each; otherwise the time holds for the
    /// layer in any network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<usize>,
    /// Median of the measured times in milliseconds; where whole networks were measured, the time that follows from
    /// them, which may be zero.
    pub ms: f64,
    /// Number of measured times, or of measured networks with the layer.
    pub samples: usize,
    /// Whether the time was estimated from those of other layers, since no measured network has the layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

impl DeviceProfile {
    /// Reads and checks a profile.
    ///
    /// # Errors
    /// A missing file, JSON that is not a profile, another format version, an impossible number, or a table that lacks
    /// a layer of its space; each with the path.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_json(&files::read_text(path)?, path)
    }

    /// Reads and checks a profile from the text of the file at `path`.
    ///
    /// # Errors
    /// As [`DeviceProfile::load`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let profile: DeviceProfile = files::parse_json(text, path)?;
        profile.validate().map_err(|message| ofa_supernet::Error::format(path, message))?;
        Ok(profile)
    }

    /// Writes the profile atomically.
    ///
    /// # Errors
    /// The profile is invalid and could not be loaded again, or the operating system fails; both with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.validate().map_err(|message| ofa_supernet::Error::format(path, message))?;
        Ok(files::write_json(path, self)?)
    }

    /// Every distinct layer of the space with its time.
    pub fn table(&self) -> &[LayerTime] {
        &self.table
    }

    /// Predicted latency of `network` in milliseconds, for the profile's batch and number of threads.
    ///
    /// # Errors
    /// The table lacks a layer of the network ([`Error::MissingLayer`]).
    pub fn latency_ms(&self, network: &NetworkSpec) -> Result<f64> {
        let index =
            self.index.get_or_init(|| self.table.iter().map(|t| ((t.resolution, t.layer.clone()), t.ms)).collect());
        let mut sum = 0.0;
        for layer in layers(network) {
            let mut key = (Some(network.resolution), layer);
            let of_resolution = index.get(&key);
            key.0 = None;
            sum += of_resolution.or_else(|| index.get(&key)).ok_or_else(|| Error::MissingLayer {
                device: self.name.clone(),
                layer: key.1.to_string(),
                space: self.space.name.clone(),
                classes: self.classes,
            })?;
        }
        Ok(self.calibration.predict(sum))
    }

    /// Checks that the table has every layer of `space`'s subnets with `classes` classes.
    ///
    /// # Errors
    /// The table lacks a layer ([`Error::MissingLayer`]).
    pub fn check_covers(&self, space: &SearchSpace, classes: usize) -> Result<()> {
        for network in measure::covering_networks(space, classes) {
            self.latency_ms(&network?)?;
        }
        Ok(())
    }

    /// Checks every value; the error is one sentence about the first wrong value.
    fn validate(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("the format is '{}'; expected '{FORMAT}'", self.format));
        }
        if self.version != VERSION {
            return Err(format!(
                "the file has format version {}, but this program reads version {VERSION}; profile the device again",
                self.version
            ));
        }
        self.space.validate().map_err(|e| e.to_string())?;
        let threads = self.hardware.as_ref().map_or(1, |hardware| hardware.threads);
        for (name, value) in [("classes", self.classes), ("batch", self.batch), ("threads", threads)] {
            if value == 0 {
                return Err(format!("{name} is 0; it must be at least 1"));
            }
        }
        let mut layers_seen = HashMap::with_capacity(self.table.len());
        for LayerTime { layer, resolution, ms, .. } in &self.table {
            let check = if self.engine.is_some() { not_negative } else { positive };
            check(&format!("time of '{layer}'"), *ms)?;
            if layers_seen.insert((*resolution, layer), ms).is_some() {
                return Err(format!("the layer '{layer}' is in the table twice"));
            }
        }
        for network in measure::covering_networks(&self.space, self.classes) {
            let network = network.map_err(|e| e.to_string())?;
            let known = |layer: &LayerSpec| {
                [None, Some(network.resolution)].into_iter().any(|r| layers_seen.contains_key(&(r, layer)))
            };
            if let Some(missing) = layers(&network).find(|layer| !known(layer)) {
                return Err(format!(
                    "the table has no time for '{missing}', a layer of its space '{}'",
                    self.space.name
                ));
            }
        }
        positive("calibration scale", self.calibration.scale)?;
        not_negative("calibration overhead_ms", self.calibration.overhead_ms)?;
        let Some(check) = &self.check else { return Ok(()) };
        for checked in &check.subnets {
            self.space.check(&checked.subnet).map_err(|e| e.to_string())?;
            positive("a checked subnet's predicted_ms", checked.predicted_ms)?;
            positive("a checked subnet's measured_ms", checked.measured_ms)?;
        }
        not_negative("check median_error", check.median_error)?;
        not_negative("check p95_error", check.p95_error)?;
        let shares = [("check within_5", check.within_5), ("check within_10", check.within_10)];
        shares.into_iter().try_for_each(|(name, share)| share.map_or(Ok(()), |share| not_negative(name, share)))
    }
}

fn positive(what: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("{what} is {value}; it must be positive")) }
}

fn not_negative(what: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(format!("{what} is {value}; it must not be negative")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::preset;
    use std::fs;
    use std::ops::ControlFlow;

    /// A profile in which every layer takes one millisecond.
    fn example() -> DeviceProfile {
        let space = preset("tiny").unwrap();
        let mut found = HashMap::new();
        for network in measure::covering_networks(&space, 4).map(Result::unwrap) {
            found.extend(layers(&network).map(|layer| (layer, ())));
        }
        let table = found
            .into_keys()
            .map(|layer| LayerTime { layer, resolution: None, ms: 1.0, samples: 9, estimated: false })
            .collect();
        let checked = CheckedSubnet { subnet: space.smallest(), predicted_ms: 5.0, measured_ms: 4.0 };
        DeviceProfile {
            number_type: NumberType::F32,
            format: FORMAT.into(),
            version: VERSION,
            name: "example".into(),
            hardware: Some(Hardware { cpu: "cpu".into(), threads: 1, instruction_set: "none".into() }),
            engine: None,
            conditions: None,
            space,
            classes: 4,
            batch: 1,
            method: "made up".into(),
            table,
            calibration: Calibration { overhead_ms: 0.5, scale: 2.0 },
            check: Check::of(vec![checked]),
            index: OnceLock::new(),
        }
    }

    #[test]
    fn every_subnet_of_the_space_has_a_latency() {
        let profile = example();
        for position in 0..200 {
            let subnet = profile.space.sample(&mut generator(2, Stream::Sampling, &[position]));
            let network = profile.space.network(&subnet, 4).unwrap();
            let layers = 2 + network.blocks().count();
            assert_eq!(profile.latency_ms(&network).unwrap(), 0.5 + 2.0 * layers as f64);
        }
        // A time at the network's resolution comes before one at any.
        let mut two = example();
        let network = two.space.network(&two.space.smallest(), 4).unwrap();
        let layer = layers(&network).next().unwrap();
        let own = LayerTime { layer, resolution: Some(network.resolution), ms: 7.0, samples: 9, estimated: false };
        let general = two.latency_ms(&network).unwrap();
        two.table.push(own);
        two.index = OnceLock::new();
        assert_eq!(two.latency_ms(&network).unwrap(), general + 2.0 * 6.0);
        let other = preset("cifar-mbv3").unwrap();
        let error = profile.latency_ms(&other.network(&other.smallest(), 4).unwrap()).unwrap_err().to_string();
        assert!(error.contains("stem 3-16") && error.contains("'tiny'"), "{error}");
        let more_classes = profile.space.network(&profile.space.smallest(), 5).unwrap();
        let error = profile.latency_ms(&more_classes).unwrap_err().to_string();
        assert!(error.contains("head") && error.contains("4 classes"), "{error}");
        profile.check_covers(&profile.space, 4).unwrap();
        assert!(profile.check_covers(&other, 4).is_err() && profile.check_covers(&profile.space, 5).is_err());
    }

    #[test]
    fn every_resnet_of_a_space_has_all_its_layers_in_the_covering_networks() {
        let space = preset("resnet-tiny").unwrap();
        let mut found = std::collections::HashSet::new();
        for network in measure::covering_networks(&space, 4).map(Result::unwrap) {
            found.extend(layers(&network));
        }
        for position in 0..300 {
            let subnet = space.sample(&mut generator(2, Stream::Sampling, &[position]));
            for layer in layers(&space.network(&subnet, 4).unwrap()) {
                assert!(found.contains(&layer), "{subnet}: {layer}");
            }
        }
    }

    #[test]
    fn a_saved_profile_loads_and_a_broken_one_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices/example.json");
        let profile = example();
        profile.save(&path).unwrap();
        let network = profile.space.network(&profile.space.largest(), 4).unwrap();
        let loaded = DeviceProfile::load(&path).unwrap();
        assert_eq!(loaded.latency_ms(&network).unwrap(), profile.latency_ms(&network).unwrap());
        assert_eq!(loaded.check, profile.check);
        let text = fs::read_to_string(&path).unwrap();
        for (old, new, part) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("ofa-device-profile", "profile", "'profile'"),
            ("\"ms\": 1.0", "\"ms\": -1.0", "must be positive"),
            ("\"ms\": 1.0", "\"ms\": null", "JSON"),
            ("\"scale\": 2.0", "\"scale\": 0.0", "scale"),
            ("\"threads\": 1", "\"threads\": 0", "threads"),
            ("\"classes\": 4,\n  \"batch\"", "\"classes\": 5,\n  \"batch\"", "no time for 'head"),
            ("\"method\"", "\"colour\": 1, \"method\"", "colour"),
            ("r16 d1,1", "r17 d1,1", "resolution is 17"),
        ] {
            assert!(text.contains(old), "{old}");
            fs::write(&path, text.replacen(old, new, 1)).unwrap();
            let message = DeviceProfile::load(&path).unwrap_err().to_string();
            assert!(message.contains("example.json") && message.contains(part), "{message}");
        }
        let mut twice = example();
        twice.table.push(twice.table[0].clone());
        assert!(twice.save(&path).unwrap_err().to_string().contains("twice"));
    }

    /// Small options that finish quickly.
    fn quick() -> ProfileOptions {
        ProfileOptions {
            rounds: 2,
            calibration_subnets: 3,
            check_subnets: 4,
            budget: crate::latency::Budget {
                min_samples: 4,
                max_samples: 4,
                time: std::time::Duration::ZERO,
                visit: 2,
            },
            ..ProfileOptions::new("here", 3)
        }
    }

    #[test]
    fn measuring_gives_a_complete_profile() {
        let space = preset("tiny").unwrap();
        let mut last = HashMap::new();
        let profile = measure(&space, &quick(), None, &mut |progress: ProfileProgress| {
            last.insert(progress.phase, (progress.done, progress.total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(last.values().all(|(done, total)| done == total && *total > 0), "{last:?}");
        let (check, hardware) = (profile.check.clone().unwrap(), profile.hardware.clone().unwrap());
        assert_eq!((last.len(), check.subnets.len(), hardware.threads), (2, 4, 1));
        let folder = tempfile::tempdir().unwrap();
        profile.save(folder.path().join("here.json")).unwrap();
        DeviceProfile::load(folder.path().join("here.json")).unwrap();
        for checked in &check.subnets {
            let network = space.network(&checked.subnet, 3).unwrap();
            assert_eq!(profile.latency_ms(&network).unwrap(), checked.predicted_ms);
        }
    }

    #[test]
    fn a_profile_of_integers_says_so() {
        let space = preset("tiny").unwrap();
        let options = ProfileOptions { number_type: NumberType::Int8, ..quick() };
        let profile = measure(&space, &options, None, &mut |_| ControlFlow::Continue(())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.json");
        profile.save(&path).unwrap();
        assert_eq!(DeviceProfile::load(&path).unwrap().number_type, NumberType::Int8);
        // Files of f32 profiles are as they were.
        example().save(&path).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("number_type"));
        assert_eq!(DeviceProfile::load(&path).unwrap().number_type, NumberType::F32);
    }

    #[test]
    fn a_stopped_measurement_goes_on_after_its_last_whole_round() {
        let space = preset("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.unfinished");
        let options = ProfileOptions { rounds: 3, ..quick() };
        // Number of visits of the layer phase in a call, which is stopped after `most` visits.
        let visits = |options: &ProfileOptions, most: usize| {
            let mut seen = 0;
            let result = measure(&space, options, Some(&path), &mut |progress| {
                seen += usize::from(progress.phase == Phase::Layers);
                if seen > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            (seen, result)
        };
        let (all, profile) = visits(&options, usize::MAX);
        let round = all / 3;
        let samples = profile.unwrap().table.iter().map(|entry| entry.samples).collect::<Vec<_>>();
        fs::remove_file(&path).unwrap();
        // Stopped in the second round, of which nothing counts.
        assert!(visits(&options, round + 1).1.is_err());
        let saved = fs::read(&path).unwrap();
        let (seen, profile) = visits(&options, usize::MAX);
        assert_eq!(seen, 2 * round);
        let profile = profile.unwrap();
        assert_eq!(profile.table.iter().map(|entry| entry.samples).collect::<Vec<_>>(), samples);
        // Nothing is left to measure.
        assert_eq!(visits(&options, usize::MAX).0, 0);
        // Another measurement, or a damaged file, starts from the beginning.
        fs::write(&path, &saved).unwrap();
        assert_eq!(visits(&ProfileOptions { seed: 1, ..options.clone() }, usize::MAX).0, all);
        fs::write(&path, &saved[..saved.len() / 2]).unwrap();
        assert_eq!(visits(&options, usize::MAX).0, all);
    }

    #[test]
    fn measuring_stops_on_request_and_refuses_impossible_options() {
        let space = preset("tiny").unwrap();
        let error = measure(&space, &quick(), None, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(error, Error::Supernet(ofa_supernet::Error::Interrupted)), "{error}");
        for options in [
            ProfileOptions { threads: 0, ..quick() },
            ProfileOptions { rounds: 0, ..quick() },
            ProfileOptions { check_subnets: 0, ..quick() },
            ProfileOptions { number_type: NumberType::F16, ..quick() },
        ] {
            assert!(measure(&space, &options, None, &mut |_| ControlFlow::Continue(())).is_err());
        }
    }
}
