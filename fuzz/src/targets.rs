//! The fuzzed parsers, a function each, called like the commands call them: on files in a separate folder.

use anyhow::anyhow;
use ofa_evaluate::model::{PublishedNetwork, tensor_shapes, validate};
use ofa_evaluate::{DeviceProfile, Model, StaticNetwork, cost};
use ofa_extract::predictor::{import_accuracies, read_samples, read_subnets};
use ofa_extract::tune::{Ranges, read_trials};
use ofa_extract::{Constraint, Predictor, SearchResult};
use ofa_supernet::data::{DataOptions, Dataset};
use ofa_supernet::import::{CheckpointFile, Setting};
use ofa_supernet::space::BlockSpec;
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::train::{TrainConfig, metrics, tensor_file};
use ofa_supernet::{SearchSpace, Subnet, files};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Objection of a parser to an input.
#[derive(Debug)]
pub enum Fault {
    /// The input is refused, in one sentence, as it should be.
    Refused(String),
    /// The input was accepted, but then contradicts itself: a finding.
    Wrong(String),
}

impl<E: std::fmt::Display> From<E> for Fault {
    fn from(error: E) -> Self {
        let text = error.to_string();
        // One sentence, since people read it in a terminal.
        if text.len() > 2000 || text.contains(char::is_control) {
            return Fault::Wrong(format!("an error of {} bytes that is not a single line: {text:?}", text.len()));
        }
        Fault::Refused(text)
    }
}

type Outcome = Result<(), Fault>;

/// A fuzzed parser.
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// The parser, called by [`Target::on`].
    pub run: fn(&Path, &[u8]) -> Outcome,
}

impl Target {
    /// The parser's answer to `bytes`; `work` is a folder for this target only.
    pub fn on(&self, work: &Path, bytes: &[u8]) -> Outcome {
        (self.run)(work, bytes)
    }
}

const fn target(name: &'static str, run: fn(&Path, &[u8]) -> Outcome) -> Target {
    Target { name, run }
}

/// All parsers.
pub const TARGETS: &[Target] = &[
    target("idx-images", |work, bytes| idx(work, "train-images-idx3-ubyte", bytes)),
    target("idx-labels", |work, bytes| idx(work, "train-labels-idx1-ubyte", bytes)),
    target("cifar", cifar),
    target("shard", shard),
    target("table", table),
    target("image", image),
    target("subnet", |_, bytes| subnet(text(bytes)?)),
    target("setting", |_, bytes| setting(text(bytes)?)),
    target("limit", |_, bytes| limit(text(bytes)?)),
    target("space", |_, bytes| space(text(bytes)?)),
    target("train-config", |_, bytes| train_config(text(bytes)?)),
    target("device-profile", device_profile),
    target("checkpoint", checkpoint),
    target("checkpoint-note", checkpoint_note),
    target("metrics", metrics_lines),
    target("samples", samples),
    target("accuracies-csv", |work, bytes| accuracies(work, "accuracies.csv", bytes)),
    target("accuracies-jsonl", |work, bytes| accuracies(work, "accuracies.jsonl", bytes)),
    target("search-result", search_result),
    target("ranges", ranges),
    target("trials", trials),
    target("predictor", predictor),
    target("model-config", |work, bytes| model(work, "model", "config.json", bytes)),
    target("model-weights", |work, bytes| model(work, "model", "model.safetensors", bytes)),
    target("int8-config", |work, bytes| model(work, "int8", "config.json", bytes)),
    target("int8-weights", |work, bytes| model(work, "int8", "model.safetensors", bytes)),
    target("published", published),
    target("block", |_, bytes| block(text(bytes)?)),
    target("network-description", |_, bytes| network_description(text(bytes)?)),
    target("latency-table", latency_table),
    target("layer-times", layer_times),
];

/// A block of a custom kind: what is accepted has costs and a text, and runs.
fn block(text: &str) -> Outcome {
    let block: BlockSpec = serde_json::from_value(text.into())?;
    if serde_json::from_value::<BlockSpec>(block.to_string().into()).ok().as_ref() != Some(&block) {
        return Err(Fault::Wrong(format!("'{block}' is not read as it was written")));
    }
    let space = tiny();
    let mut network = space.network(&space.smallest(), 4)?;
    network.stem[0].out_channels = block.in_channels();
    let feature = network.feature.as_mut().expect("a MobileNet");
    feature.in_channels = block.out_channels();
    let size = block.input_size();
    network.stages = vec![vec![block]];
    // The stem halves the size.
    network.set_resolution(2 * size);
    validate(&network)?;
    let (macs, numbers) = (cost::macs(&network), cost::stored_numbers(&network));
    if macs.max(numbers).max(cost::peak_activation_bytes(&network)) > 1 << 22 {
        return Err(anyhow!("too large to run here").into());
    }
    let mut runnable = StaticNetwork::random(&network, 0)?;
    let logits = runnable.run(&vec![0.5; 4 * size * size * 3], 1)?;
    if logits.len() == 4 { Ok(()) } else { Err(Fault::Wrong(format!("{} logits", logits.len()))) }
}

fn network_description(text: &str) -> Outcome {
    let published = PublishedNetwork::new(text, 32)?;
    // Accepted networks must have a cost and names.
    let network = &published.network;
    let numbers = tensor_shapes(network).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum::<u64>();
    if cost::parameters(network) > numbers {
        return Err(Fault::Wrong("more parameters than its tensors hold".into()));
    }
    Ok(())
}

fn tiny() -> SearchSpace {
    SearchSpace::named("tiny").expect("a preset")
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    Ok(std::str::from_utf8(bytes)?)
}

/// Writes an input. The first call creates the folder and copies its other files from the corpus.
fn put(work: &Path, name: &str, bytes: &[u8]) -> Result<std::path::PathBuf, Fault> {
    let path = work.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, bytes)?;
    Ok(path)
}

fn corpus(name: &str) -> Result<Vec<u8>, Fault> {
    Ok(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name))?)
}

fn put_once(work: &Path, name: &str, seed: &str) -> Outcome {
    if !work.join(name).exists() {
        put(work, name, &corpus(seed)?)?;
    }
    Ok(())
}

fn open(work: &Path) -> Outcome {
    let mut outcome = Ok(());
    for (skip_bad, cache_bytes) in [(false, usize::MAX), (true, usize::MAX), (true, 0)] {
        let options = DataOptions { validation: Some(0), skip_bad, cache_bytes, ..DataOptions::default() };
        let opened = Dataset::open(&work.to_string_lossy(), &options);
        match opened {
            Ok(data) => {
                for index in 0..data.train.len().min(20) {
                    let image = data.train.image(index)?;
                    if image.pixels.len() != image.width * image.height * 3 {
                        return Err(Fault::Wrong("an image of another size than it says".into()));
                    }
                    if data.train.label(index) as usize >= data.classes.len() {
                        return Err(Fault::Wrong("a label without a class".into()));
                    }
                }
            }
            Err(error) if !skip_bad => outcome = Err(error.into()),
            // Images that cannot be skipped are refused with either setting.
            Err(error) => {
                if outcome.is_ok() {
                    return Err(Fault::Wrong(format!("refused only if bad images are skipped: {error}")));
                }
            }
        }
    }
    outcome
}

fn idx(work: &Path, name: &str, bytes: &[u8]) -> Outcome {
    for split in ["train", "t10k"] {
        put_once(work, &format!("{split}-images-idx3-ubyte"), "idx-images/plain")?;
        put_once(work, &format!("{split}-labels-idx1-ubyte"), "idx-labels/plain")?;
    }
    put(work, name, bytes)?;
    open(work)
}

fn cifar(work: &Path, bytes: &[u8]) -> Outcome {
    put_once(work, "test_batch.bin", "cifar/ten")?;
    put(work, "data_batch_1.bin", bytes)?;
    open(work)
}

fn shard(work: &Path, bytes: &[u8]) -> Outcome {
    put_once(work, "test-0.tar", "shard/two")?;
    put(work, "train-0.tar", bytes)?;
    open(work)
}

fn table(work: &Path, bytes: &[u8]) -> Outcome {
    put_once(work, "test-0.parquet", "table/two")?;
    put(work, "train-0.parquet", bytes)?;
    open(work)
}

fn image(work: &Path, bytes: &[u8]) -> Outcome {
    for path in ["train/a/good.png", "train/b/good.png", "test/a/good.png", "test/b/good.png"] {
        put_once(work, path, "image/rgb.png")?;
    }
    put(work, "train/a/input", bytes)?;
    open(work)
}

fn subnet(text: &str) -> Outcome {
    let subnet: Subnet = text.parse()?;
    if subnet.to_string().parse::<Subnet>().ok().as_ref() != Some(&subnet) {
        return Err(Fault::Wrong(format!("'{text}' is read as '{subnet}', which is something else")));
    }
    tiny().check(&subnet)?;
    tiny().network(&subnet, 10)?;
    Ok(())
}

fn setting(text: &str) -> Outcome {
    let setting: Setting = text.parse()?;
    for space in ["tiny", "resnet-tiny"] {
        let space = SearchSpace::named(space)?;
        let resolution = setting.resolution().unwrap_or(32);
        if let Ok(subnet) = setting.subnet(&space, resolution) {
            space.check(&subnet).map_err(|e| Fault::Wrong(format!("'{subnet}' is not of its space: {e}")))?;
        }
    }
    Ok(())
}

fn limit(text: &str) -> Outcome {
    let limit: Constraint = text.parse()?;
    if limit.to_string().parse::<Constraint>().ok().as_ref() != Some(&limit) {
        return Err(Fault::Wrong(format!("'{text}' is read as '{limit}', which is something else")));
    }
    Ok(())
}

fn space(text: &str) -> Outcome {
    let space = SearchSpace::from_toml(text)?;
    for subnet in [space.smallest(), space.middle(), space.largest()] {
        let network = space.network(&subnet, 10)?;
        if cost::macs(&network) == 0 || cost::parameters(&network) == 0 || cost::peak_activation_bytes(&network) == 0 {
            return Err(Fault::Wrong(format!("'{subnet}' costs nothing")));
        }
    }
    let written = toml::to_string(&space).map_err(|e| Fault::Wrong(e.to_string()))?;
    if SearchSpace::from_toml(&written).ok().as_ref() != Some(&space) {
        return Err(Fault::Wrong("written and read again it is another space".into()));
    }
    Ok(())
}

fn train_config(text: &str) -> Outcome {
    let (config, space) = (TrainConfig::from_toml(text)?, tiny());
    config.validate(&space)?;
    for images in [1, 1000] {
        if config.plan(&space, images).iter().any(|stage| stage.steps == 0 || stage.batch == 0) {
            return Err(Fault::Wrong("a stage without steps".into()));
        }
    }
    ofa_evaluate::memory::TrainingMemory::estimate(&space, None, 10, &config, 1000, 100)?;
    Ok(())
}

fn device_profile(work: &Path, bytes: &[u8]) -> Outcome {
    let profile = DeviceProfile::load(put(work, "profile.json", bytes)?)?;
    let network = profile.space.network(&profile.space.largest(), profile.classes)?;
    match profile.latency_ms(&network) {
        Ok(ms) if ms.is_finite() && ms > 0.0 => Ok(()),
        other => Err(Fault::Wrong(format!("the largest subnet takes {other:?}"))),
    }
}

fn checkpoint(work: &Path, bytes: &[u8]) -> Outcome {
    let path = put(work, "step-00000001.safetensors", bytes)?;
    read_supernet(&path).map_or_else(|_| Folder::read(&path).map(drop), |_| Ok(()))?;
    Ok(())
}

/// The note of a complete checkpoint, which the checksum hides from random damage.
fn checkpoint_note(work: &Path, bytes: &[u8]) -> Outcome {
    let note: serde_json::Value = serde_json::from_slice(bytes)?;
    let path = put(work, "step-00000001.safetensors", b"")?;
    let tensor = candle_core::Tensor::new(&[1f32], &candle_core::Device::Cpu)?;
    tensor_file::write(&path, &BTreeMap::from([("weights.a".to_string(), tensor)]), &note)?;
    let found = Folder::read(&path)?;
    Ok(found.identity.space.validate()?)
}

fn metrics_lines(work: &Path, bytes: &[u8]) -> Outcome {
    metrics::read(&put(work, "metrics.jsonl", bytes)?)?;
    Ok(())
}

fn samples(work: &Path, bytes: &[u8]) -> Outcome {
    read_samples(&put(work, "samples.jsonl", bytes)?, &tiny())?;
    Ok(())
}

/// Accuracies that were measured elsewhere.
fn accuracies(work: &Path, name: &str, bytes: &[u8]) -> Outcome {
    let path = put(work, name, bytes)?;
    let samples = import_accuracies(&path, &tiny())?;
    if samples.iter().any(|sample| !(0.0..=1.0).contains(&sample.accuracy)) {
        return Err(Fault::Wrong("an accuracy outside 0 to 1".into()));
    }
    match read_subnets(&path, &tiny()) {
        Ok(subnets) if subnets.len() == samples.len() => Ok(()),
        other => Err(Fault::Wrong(format!("{} accuracies, but as subnets {other:?}", samples.len()))),
    }
}

fn search_result(work: &Path, bytes: &[u8]) -> Outcome {
    files::read_json::<SearchResult>(&put(work, "result.json", bytes)?)?;
    Ok(())
}

fn ranges(work: &Path, bytes: &[u8]) -> Outcome {
    let config = TrainConfig::preset("tiny", &tiny())?;
    Ranges::read(&put(work, "ranges.toml", bytes)?, &config, &tiny())?;
    Ok(())
}

fn trials(work: &Path, bytes: &[u8]) -> Outcome {
    let ranges = Ranges::about(&TrainConfig::preset("tiny", &tiny())?, &tiny())?;
    read_trials(&put(work, "trials.jsonl", bytes)?, &ranges)?;
    Ok(())
}

/// A published checkpoint (.pth of both formats, safetensors).
fn published(work: &Path, bytes: &[u8]) -> Outcome {
    let mut file = CheckpointFile::open(&put(work, "net.pth", bytes)?)?;
    let listed: Vec<(String, usize)> =
        file.tensors().map(|(name, shape)| (name.to_string(), shape.iter().product())).collect();
    for (name, count) in listed {
        let values = file.values(&name)?;
        if values.len() != count {
            return Err(Fault::Wrong(format!("{} values in a tensor of {count}", values.len())));
        }
    }
    Ok(())
}

fn latency_table(work: &Path, bytes: &[u8]) -> Outcome {
    let path = put(work, "table.yaml", bytes)?;
    let profile = ofa_evaluate::profile::import(&tiny(), 4, "phone", std::slice::from_ref(&path))?;
    let network = profile.space.network(&profile.space.largest(), 4)?;
    match profile.latency_ms(&network) {
        Ok(ms) if ms > 0.0 => Ok(()),
        other => Err(Fault::Wrong(format!("the largest subnet takes {other:?}"))),
    }
}

/// Times of layers as `ofa profile --layers` lists them.
fn layer_times(work: &Path, bytes: &[u8]) -> Outcome {
    let path = put(work, "times.csv", bytes)?;
    let profile = ofa_evaluate::profile::import_csv(&tiny(), 4, "board", std::slice::from_ref(&path))?;
    match profile.latency_ms(&tiny().network(&tiny().largest(), 4)?) {
        Ok(ms) if ms > 0.0 => Ok(()),
        other => Err(Fault::Wrong(format!("the largest subnet takes {other:?}"))),
    }
}

fn predictor(work: &Path, bytes: &[u8]) -> Outcome {
    let predictor = Predictor::load(&put(work, "predictor.safetensors", bytes)?)?;
    let found = predictor.predict(&[tiny().smallest()])?;
    if found.len() == 1 { Ok(()) } else { Err(Fault::Wrong(format!("{} predictions", found.len()))) }
}

/// A model folder of the seeds of `kind` with another file `name`.
fn model(work: &Path, kind: &str, name: &str, bytes: &[u8]) -> Outcome {
    put_once(work, "config.json", &format!("{kind}-config/tiny.json"))?;
    put_once(work, "model.safetensors", &format!("{kind}-weights/tiny"))?;
    put(work, name, bytes)?;
    let mut model = Model::load(work)?;
    let side = model.config().network.resolution;
    if side > 64 {
        return Err(anyhow!("too large to run here").into());
    }
    let classes = model.config().labels.len();
    let logits = model.network().run(&vec![0.5; side * side * 3], 1)?;
    if logits.len() == classes { Ok(()) } else { Err(Fault::Wrong(format!("{} logits", logits.len()))) }
}
