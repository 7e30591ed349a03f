//! Model folders: where models are written, which may be replaced, and which are up to date.

use crate::arguments::shell;
use crate::run_folder::model_origin::Wanted;
use crate::run_folder::{RunFolder, result_files};
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::model::{CONFIG_FILE, Finetuned, ModelConfig, NumberType, Quantisation, load_config, load_weights};
use ofa_supernet::Subnet;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Fails before any work if two models would have the same name, or a model would be lost.
pub fn check_all(folder: &RunFolder, wanted: &[Wanted], overwrite: bool) -> Result<()> {
    let mut names: HashMap<&str, &Subnet> = HashMap::new();
    for Wanted { name, subnet, search } in wanted {
        if names.insert(name, subnet).is_some_and(|other| other != subnet) {
            bail!("two of the subnets would be the model '{name}'; extract one of them separately, with --name");
        }
        if !overwrite {
            check_replaceable(&model_folder(folder, name), subnet, search.as_ref().map(|found| &found.sentence))?;
        }
    }
    Ok(())
}

/// Fails if the int8 twin of one of the run's models, which are in `current` or `wanted`, would be another one of them.
pub fn check_twins(folder: &RunFolder, current: &[PathBuf], wanted: &[Wanted]) -> Result<()> {
    let wanted = wanted.iter().map(|wanted| model_folder(folder, &wanted.name));
    let folders: Vec<PathBuf> = current.iter().cloned().chain(wanted).collect();
    let Some(model) = folders.iter().find(|model| folders.contains(&int8_folder(model))) else { return Ok(()) };
    bail!(
        "{}: would be an f32 model and the int8 twin of {} too; extract without --int8, then run ofa quantise {} with --out for another folder",
        int8_folder(model).display(),
        model.display(),
        shell::path(model)
    )
}

/// Fails if extracting `subnet` to `path` would replace a fine-tuned model, an int8 model, another subnet's, or another
/// search's. Any other model can be extracted again at any time.
fn check_replaceable(path: &Path, subnet: &Subnet, search: Option<&String>) -> Result<()> {
    // Weights without a configuration are what an interrupted extraction left.
    if !path.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let way_out = "give --overwrite to replace it, or extract under another --name";
    let held = match load_config(path) {
        Ok(held) => held,
        // A damaged configuration still shows whether the model was fine-tuned, in f32 or in integers; others can be
        // made again.
        Err(error)
            if std::fs::read_to_string(path.join(CONFIG_FILE)).is_ok_and(|text| text.contains("\"finetuned\"")) =>
        {
            bail!("{error}; {way_out}")
        }
        Err(_) => return Ok(()),
    };
    if held.quantisation.is_some() {
        bail!("{}: this folder holds an int8 model; {way_out}", path.display());
    }
    if let Some(finetuned) = held.finetuned {
        let (epochs, rate) = (finetuned.epochs, finetuned.learning_rate);
        bail!(
            "{}: this folder holds a fine-tuned model (--finetune {epochs} --finetune-rate {rate}); {way_out}",
            path.display()
        );
    }
    let origin = held.origin.unwrap_or_default();
    if let (Some((_, found)), false) =
        (origin.split_once(result_files::SENTENCE), search.is_some_and(|search| origin.contains(search)))
    {
        bail!("{}: this folder holds the result of another search, {found} {way_out}", path.display());
    }
    if held.subnet != *subnet {
        bail!("{}: this folder holds another subnet ('{}'); {way_out}", path.display(), held.subnet);
    }
    Ok(())
}

/// Folder of the run's model `name`.
pub fn model_folder(folder: &RunFolder, name: &str) -> PathBuf {
    folder.join(&format!("models/{name}"))
}

/// Fails if writing the int8 model of `subnet` to `out` would replace a fine-tuned model, an f32 model, or one of
/// another subnet. Any other int8 model can be made again at any time.
pub fn check_int8_replaceable(out: &Path, subnet: &Subnet) -> Result<()> {
    // Weights without a configuration are what an interrupted command left.
    if !out.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let way_out = "give --overwrite to replace it";
    let held = load_config(out).map_err(|error| anyhow!("{error}; {way_out}"))?;
    let what = match &held.quantisation {
        None => "an f32 model".to_string(),
        Some(Quantisation { finetuned: Some(finetuned), .. }) => format!(
            "a fine-tuned int8 model (--finetune {} --finetune-rate {})",
            finetuned.epochs, finetuned.learning_rate
        ),
        Some(_) if held.subnet != *subnet => format!("the int8 model of another subnet ('{}')", held.subnet),
        Some(_) => return Ok(()),
    };
    bail!("{}: this folder holds {what}; {way_out}", out.display())
}

/// The folder NAME-int8 beside `folder`.
pub fn int8_folder(folder: &Path) -> PathBuf {
    let folder = folder.canonicalize().map_or_else(
        |_| folder.to_path_buf(),
        |path| {
            // As it was named, unless the name is in the path only.
            if folder.file_name().is_some() { folder.to_path_buf() } else { path }
        },
    );
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}-int8"))
}

/// Name of `folder` if it is beside `out`.
pub fn name_beside(folder: &Path, out: &Path) -> Option<String> {
    let parent = |path: &Path| std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let (folder, out) = (folder.canonicalize().ok()?, out.canonicalize().unwrap_or_else(|_| out.to_path_buf()));
    let beside = parent(&folder)? == parent(&out).and_then(|path| path.canonicalize().ok())?;
    if beside { Some(folder.file_name()?.to_str()?.to_string()) } else { None }
}

/// Whether the folder holds the whole model that extracting `wanted` from weights of this `origin` would write. Equal
/// fine-tuning that lowered the accuracy would do so again.
pub fn is_current(path: &Path, wanted: &Wanted, origin: &str, finetuned: Option<Finetuned>, dtype: NumberType) -> bool {
    let same = |held: &ModelConfig| {
        held.subnet == wanted.subnet
            && held.origin == Some(wanted.origin(origin))
            && (held.finetuned == finetuned || (held.finetuned.is_none() && held.tried_finetuning == finetuned))
            && held.dtype == dtype
    };
    load_weights(path).is_ok_and(|(held, _)| same(&held))
}

/// Whether `twin` is a whole int8 model of the model in `folder` as it is now, fine-tuned for `epochs` where these are
/// given and did not lower the accuracy.
pub fn is_twin_current(folder: &Path, twin: &Path, epochs: Option<f64>) -> bool {
    let held = |folder: &Path| load_config(folder).ok();
    let (Some(model), Some(int8)) = (held(folder), held(twin)) else { return false };
    let Some(quantisation) = int8.quantisation else { return false };
    quantisation.f32_model.is_some_and(|name| folder.file_name().is_some_and(|own| own == name.as_str()))
        && (int8.origin, int8.subnet, int8.finetuned) == (model.origin, model.subnet, model.finetuned)
        && epochs.is_none_or(|epochs| {
            quantisation.finetuned.or(quantisation.tried_finetuning).is_some_and(|how| how.epochs == epochs)
        })
        && ofa_evaluate::Model::load(twin).is_ok()
}
