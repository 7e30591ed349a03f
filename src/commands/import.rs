//! `ofa import`

use crate::run_folder::{DataConfig, RunConfig, RunFolder, numbered_classes};
use anyhow::{Context, Result, bail};
use ofa_supernet::SearchSpace;
use ofa_supernet::data::Normalisation;
use ofa_supernet::import::read_supernet;
use ofa_supernet::space::Family;
use ofa_supernet::train::TrainConfig;
use ofa_supernet::train::checkpoint::{Folder, SupernetNote, write_supernet};
use std::path::PathBuf;

/// Make a run folder of a published once-for-all checkpoint, without training: a file of torch.save (both of its formats) or
/// safetensors with the published code's parameter names. Nothing in the file is executed.
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint of a supernet.
    file: PathBuf,
    /// Its search space: mbv3-w1.0, mbv3-w1.2, proxyless-w1.3, any other width, or a .toml file.
    #[arg(long)]
    space: String,
    /// Run folder to make.
    #[arg(long, default_value = "run")]
    out: PathBuf,
    /// Resolutions to choose from, in place of the space's.
    #[arg(long, value_delimiter = ',')]
    resolutions: Vec<usize>,
    /// Epsilon of batch norm, which a checkpoint does not tell, in place of the space's (the published code's default is 1e-5 for
    /// MobileNetV3 and 1e-3 for ProxylessNAS).
    #[arg(long)]
    batch_norm_epsilon: Option<f64>,
    /// Images of the checkpoint's classes, which later commands recalibrate and measure on; their folder names are the class names.
    /// Without them classes are numbered, and later commands take --data.
    #[arg(long)]
    data: Option<String>,
    /// Images carved from the training images for validation.
    #[arg(long, requires = "data")]
    validation: Option<usize>,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = RunFolder::new(&args.out);
    let path = Folder::of_run(&args.out, 1).supernet_path();
    if folder.join("config.toml").exists() || folder.join("checkpoints").exists() {
        bail!("{}: there is a run in it already; name another folder with --out", args.out.display());
    }
    let mut space = SearchSpace::named(&args.space)?;
    if !args.resolutions.is_empty() {
        space.resolutions = args.resolutions.clone();
    }
    match args.batch_norm_epsilon {
        Some(epsilon) => space.batch_norm_epsilon = epsilon,
        None if space.family == Family::ProxylessNas => eprintln!(
            "batch norm's epsilon is taken as {:e}, since a checkpoint does not tell; that of the published ProxylessNAS              supernet is 1e-3: --batch-norm-epsilon 1e-3",
            space.batch_norm_epsilon
        ),
        None => {}
    }
    space.validate()?;
    let net = read_supernet(&args.file, &space)?;
    let mut data = DataConfig {
        source: args.data.clone().unwrap_or_default(),
        // The weights expect images normalised as those that they were trained on.
        normalisation: Some(Normalisation::IMAGENET),
        ..DataConfig::default()
    };
    if let Some(validation) = args.validation {
        data.validation = validation;
    }
    let classes = match &args.data {
        None => numbered_classes(net.classes()),
        Some(source) => {
            let classes = data.open()?.classes;
            if classes.len() != net.classes() {
                bail!(
                    "{}: the checkpoint has {} classes, the data '{source}' has {}",
                    args.file.display(),
                    net.classes(),
                    classes.len()
                );
            }
            classes
        }
    };
    let train = TrainConfig::preset("imagenet", &space)?;
    let parameters: usize = net.parameters().iter().map(|p| p.var.elem_count()).sum();
    let note = SupernetNote { space: space.clone(), classes, steps: 0 };
    let existed = args.out.exists();
    let _lock = folder.lock()?;
    let written = write_supernet(&path, net.state()?, &note)
        .map_err(anyhow::Error::from)
        .and_then(|()| folder.write_config(&RunConfig { data, space, train }));
    if let Err(error) = written {
        // All that is there by now is what this command wrote.
        let leftover = if existed { folder.join("checkpoints") } else { args.out.clone() };
        let _ = std::fs::remove_dir_all(leftover);
        return Err(error).context("nothing was imported");
    }
    println!(
        "{}: a supernet of the space '{}' with {} classes and {:.2} M parameters; {} written",
        args.file.display(),
        note.space.name,
        note.classes.len(),
        parameters as f64 / 1e6,
        path.display()
    );
    println!("Next: ofa profile --run {run} --name this, ofa predictor --run {run}", run = args.out.display());
    Ok(())
}
