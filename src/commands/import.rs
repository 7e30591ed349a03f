//! `ofa import`

use crate::arguments::{numbers, shell};
use crate::output::progress::Bar;
use crate::output::terminal::note;
use crate::output::{next_steps, terminal};
use crate::run_folder::class_names::{numbered_classes, of_numbered_outputs};
use crate::run_folder::{DataConfig, RunConfig, RunFolder, data_flag};
use anyhow::{Context, Result, bail};
use ofa_evaluate::cost;
use ofa_evaluate::model::{ModelConfig, NumberType, PublishedNetwork, is_unfinished, save};
use ofa_supernet::SearchSpace;
use ofa_supernet::data::Normalisation;
use ofa_supernet::files;
use ofa_supernet::import::{CheckpointFile, read_supernet_from};
use ofa_supernet::train::TrainConfig;
use ofa_supernet::train::checkpoint::{Folder, SupernetNote, write_supernet};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Make a run folder from a published once-for-all supernet, or a model folder from a published specialised network,
/// without training. The checkpoint is a file of torch.save (in either of its formats) or safetensors with the
/// published code's parameter names. Nothing in the file is executed.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint file.
    file: PathBuf,
    /// Search space of a supernet: mbv3-w1.0, mbv3-w1.2, proxyless-w1.3, any other width, resnet50d, or a .toml file.
    #[arg(long, required_unless_present = "network")]
    space: Option<String>,
    /// Layers of a specialised network: the net.config published with its checkpoint.
    #[arg(long, requires = "resolution", conflicts_with_all = ["space", "resolutions", "batch_norm_epsilon", "validation"])]
    network: Option<PathBuf>,
    /// Input resolution of a specialised network (image_size in the published run.config).
    #[arg(long, requires = "network", value_parser = numbers::resolution)]
    resolution: Option<usize>,
    /// Folder to make: a run folder, or the model folder of a specialised network.
    #[arg(long, default_value = "run")]
    out: PathBuf,
    /// Resolutions to choose from, in place of the space's.
    #[arg(long, value_delimiter = ',', value_parser = numbers::resolution)]
    resolutions: Vec<usize>,
    /// Epsilon of batch norm in place of the space's; checkpoints do not record it (the published code's default is
    /// 1e-5 for MobileNetV3 and 1e-3 for ProxylessNAS).
    #[arg(long, value_parser = numbers::epsilon)]
    batch_norm_epsilon: Option<f64>,
    /// Images of the checkpoint's classes, on which later commands recalibrate and measure; the names of class folders
    /// become the class names. Without images the classes are numbered, and later commands take --data.
    #[arg(long)]
    data: Option<String>,
    /// Images carved from the training images for validation.
    #[arg(long, requires = "data", value_parser = numbers::images_or_none)]
    validation: Option<usize>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long, requires = "data")]
    skip_bad: bool,
}

pub fn run(args: &Args) -> Result<Value> {
    let _bar = Bar::new(format!("importing {}", args.file.display()), 0, "");
    match (&args.network, args.resolution, &args.space) {
        (Some(network), Some(resolution), _) => specialised(args, network, resolution),
        (_, _, Some(space)) => supernet(args, space),
        _ => bail!("give --space for a supernet, or --network and --resolution for a specialised network"),
    }
}

fn specialised(args: &Args, description: &Path, resolution: usize) -> Result<Value> {
    if args.out.exists() && !is_unfinished(&args.out) {
        bail!("{}: already exists; name another folder with --out", args.out.display());
    }
    let published =
        PublishedNetwork::new(&files::read_text(description)?, resolution).map_err(|e| e.at(description))?;
    let mut file = CheckpointFile::open(&args.file)?;
    let weights = published.weights_from(&mut file)?;
    note_choice(&file);
    let labels = class_names(args, &data_config(args)?, published.network.classes)?;
    let (macs, parameters) = (cost::macs(&published.network), cost::parameters(&published.network));
    let name = description.parent().and_then(Path::file_name).map_or("published".into(), |name| name.to_string_lossy());
    let PublishedNetwork { network, subnet, .. } = published;
    let normalisation = Normalisation::IMAGENET;
    let config = ModelConfig::new(&name, &subnet, network, labels, normalisation, NumberType::F32);
    let origin = Some(format!(
        "A published network, imported from its description and its checkpoint '{}'.",
        file_name(&args.file)
    ));
    let config = ModelConfig { origin, ..config };
    save(&args.out, &config, &weights)?;
    say!(
        "{}: {:.1} M MACs and {:.2} M parameters at {resolution} px, {} classes; {} written",
        args.file.display(),
        macs as f64 / 1e6,
        parameters as f64 / 1e6,
        config.labels.len(),
        args.out.display()
    );
    terminal::next([format!("ofa bench {} --data DIR", shell::path(&args.out))]);
    Ok(json!({
        "model": args.out,
        "subnet": config.subnet,
        "resolution": resolution,
        "classes": config.labels.len(),
        "macs": macs,
        "parameters": parameters,
    }))
}

/// A file's name, without the folders that only its owner knows.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Says which weights were taken from a file that holds several.
fn note_choice(file: &CheckpointFile) {
    if let Some(choice) = file.choice() {
        note(format!("{}: {choice}", file.path().display()));
    }
}

/// Configuration of the images of `--data`, if given.
fn data_config(args: &Args) -> Result<DataConfig> {
    let mut data = DataConfig {
        source: args.data.as_deref().map(data_flag).transpose()?.unwrap_or_default(),
        // The weights expect the normalisation that they were trained with.
        normalisation: Some(Normalisation::IMAGENET),
        ..DataConfig::default()
    };
    data.skip_bad = args.skip_bad;
    if let Some(validation) = args.validation {
        data.validation = Some(validation);
    }
    Ok(data)
}

/// Names of the checkpoint's `count` classes in the order of its outputs: the data's names, otherwise numbers.
fn class_names(args: &Args, data: &DataConfig, count: usize) -> Result<Vec<String>> {
    if data.source.is_empty() {
        return Ok(numbered_classes(count));
    }
    of_numbered_outputs(count, &data.open()?, &format!("{}: the checkpoint", args.file.display()))
}

fn supernet(args: &Args, space: &str) -> Result<Value> {
    let folder = RunFolder::new(&args.out);
    let path = Folder::of_run(&args.out, 1).supernet_path();
    let mut space = SearchSpace::named(space)?;
    if !args.resolutions.is_empty() {
        space.resolutions = args.resolutions.clone();
    }
    let rules = space.family.rules();
    match (args.batch_norm_epsilon, rules.published_epsilon) {
        (Some(epsilon), _) => space.batch_norm_epsilon = epsilon,
        (None, Some(published)) => note(format!(
            "checkpoints do not record batch norm's epsilon, so {:e} is used; for the published {} supernet give \
             --batch-norm-epsilon {published:e}",
            space.batch_norm_epsilon, rules.name
        )),
        (None, None) => {}
    }
    space.validate()?;
    let train = TrainConfig::preset("imagenet", &space)?;
    let config = RunConfig { from: None, data: data_config(args)?, space: space.clone(), train };
    check_is_free(&folder, args, &config)?;
    let mut file = CheckpointFile::open(&args.file)?;
    let (net, skipped) = read_supernet_from(&mut file, &space)?;
    note_choice(&file);
    skipped.into_iter().for_each(note);
    let classes = class_names(args, &config.data, net.classes())?;
    let parameters: usize = net.parameters().iter().map(|p| p.var.elem_count()).sum();
    let note = SupernetNote { space, classes, steps: 0, trained_on: None, earlier: Vec::new() };
    let existed = args.out.exists();
    let _lock = folder.lock()?;
    check_is_free(&folder, args, &config)?;
    // The supernet is written last and makes the folder a run.
    let written = folder.write_config(&config).and_then(|()| Ok(write_supernet(&path, net.state()?, &note)?));
    if let Err(error) = written {
        // The folder was free, so all its files are this command's.
        if existed {
            let _ = files::remove_file(&folder.join("config.toml"));
            let _ = std::fs::remove_dir(folder.join("checkpoints"));
        } else {
            let _ = std::fs::remove_dir_all(&args.out);
        }
        return Err(error).context("nothing was imported");
    }
    say!(
        "{}: a supernet of the space '{}' with {} classes and {:.2} M parameters; {} written",
        args.file.display(),
        note.space.name,
        note.classes.len(),
        parameters as f64 / 1e6,
        path.display()
    );
    terminal::next(next_steps::with_supernet(&config, &shell::path(&args.out)));
    Ok(json!({
        "run": args.out,
        "supernet": path,
        "space": note.space.name,
        "classes": note.classes.len(),
        "parameters": parameters,
    }))
}

/// Fails if the folder holds a run. The configuration that is to be written may be there without checkpoints: a killed
/// import left it.
fn check_is_free(folder: &RunFolder, args: &Args, config: &RunConfig) -> Result<()> {
    let entries = std::fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let same = || folder.config().ok().and_then(|there| there.to_toml().ok()) == config.to_toml().ok();
    if names.any(|name| !files::is_temporary(&name)) || (folder.join("config.toml").exists() && !same()) {
        bail!("{}: already holds a run; name another folder with --out", args.out.display());
    }
    Ok(())
}
