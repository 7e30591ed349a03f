//! `ofa profile`

use crate::processes::hint_at_cores;
use crate::run_folder::RunFolder;
use crate::{interrupt, memory, numbers, progress};
use anyhow::{Error, Result};
use ofa_evaluate::DeviceProfile;
use ofa_evaluate::profile::{Phase, ProfileOptions, check_name, import, measure, memory as memory_of_profile};
use ofa_supernet::{SearchSpace, files};
use std::path::PathBuf;

/// Measure this device: a latency table for every block of the space, checked on random subnets.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder; the profile is written to its devices/NAME.json.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Name of the device in limits.
    #[arg(long, default_value = "this")]
    name: String,
    /// Threads that a model runs on.
    #[arg(long = "model-threads", default_value_t = 1, value_parser = numbers::threads)]
    model_threads: usize,
    /// Images per run; limits on this device's latency are for that many images together.
    #[arg(long, default_value_t = 1, value_parser = numbers::batch)]
    batch: usize,
    /// Rounds of measurement; each visits every network once.
    #[arg(long, value_parser = numbers::repetitions)]
    rounds: Option<usize>,
    /// Random subnets that check the predictions.
    #[arg(long, value_parser = numbers::checked_subnets)]
    check: Option<usize>,
    /// Seed of weights, images and subnets.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    seed: u64,
    /// Import the latency tables that the authors of once-for-all publish, instead of measuring; one YAML file per
    /// resolution.
    #[arg(long, num_args = 1.., value_name = "TABLE", conflicts_with_all = ["model_threads", "batch", "rounds", "check", "seed"])]
    import: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    check_name(&args.name).map_err(Error::msg)?;
    let folder = RunFolder::new(&args.run);
    let _lock = folder.lock_shared()?;
    let (space, classes) = folder.space()?;
    let path = folder.join(&format!("devices/{}.json", args.name));
    if !args.import.is_empty() {
        let profile = import(&space, classes.len(), &args.name, &args.import)?;
        profile.save(&path)?;
        say!(
            "device '{}': {} layers at resolutions {:?} from {} tables",
            profile.name,
            profile.table().len(),
            profile.space.resolutions,
            args.import.len()
        );
        say!("{} written", path.display());
        return Ok(());
    }
    let mut options = ProfileOptions::new(&args.name, classes.len());
    options.threads = args.model_threads;
    options.batch = args.batch;
    options.seed = args.seed;
    if let Some(rounds) = args.rounds {
        options.rounds = rounds;
    }
    if let Some(check) = args.check {
        options.check_subnets = check;
    }
    hint_at_cores("--model-threads", args.model_threads);
    let need = |batch| Ok(memory_of_profile(&space, &ProfileOptions { batch, ..options.clone() })?);
    memory::check_batch("measuring the space's networks", options.batch, &need, 1)?;
    let profile = profile_device(&folder, &space, &options)?;
    if let Some(hardware) = &profile.hardware {
        say!(
            "device '{}': {} ({} threads, {}){}",
            profile.name,
            hardware.cpu,
            hardware.threads,
            hardware.instruction_set,
            if profile.batch > 1 {
                format!("; latency is for one run of {} images together", profile.batch)
            } else {
                String::new()
            }
        );
    }
    print_check(&profile);
    if profile.check.as_ref().is_some_and(|check| check.median_error > 0.05) {
        complain!(
            "the median error is above 5 %, perhaps because the machine is busy; measure again when it is quiet, or with more --rounds"
        );
    }
    say!("{} written", path.display());
    Ok(())
}

/// Prints the number of layers and the error of predictions.
pub fn print_check(profile: &DeviceProfile) {
    let check = profile.check.as_ref().map_or(String::new(), |check| {
        format!(
            "; error on {} random subnets: median {:.1} %, 95th percentile {:.1} %",
            check.subnets.len(),
            100.0 * check.median_error,
            100.0 * check.p95_error
        )
    });
    say!("{} layers{check}", profile.table().len());
}

/// Measures with a progress bar and writes the profile into the folder. A stopped measurement is resumed.
pub fn profile_device(folder: &RunFolder, space: &SearchSpace, options: &ProfileOptions) -> Result<DeviceProfile> {
    let name = &options.name;
    let bar = progress::bar(0, "visits");
    let unfinished = folder.join(&format!("devices/{name}.unfinished"));
    let profile = measure(space, options, Some(&unfinished), &mut |visits| {
        bar.set_length(visits.total as u64);
        bar.set_position(visits.done as u64);
        bar.set_message(match visits.phase {
            Phase::Layers => "timing layers",
            Phase::Subnets => "timing whole subnets",
        });
        interrupt::control()
    });
    if interrupt::requested() && profile.is_err() {
        bar.abandon();
        return Err(interrupt::stopped(format!(
            "stopped; complete rounds are kept in {}; run the same command to resume",
            unfinished.display()
        )));
    }
    let profile = profile?;
    bar.finish_and_clear();
    profile.save(folder.join(&format!("devices/{name}.json")))?;
    files::remove_file(&unfinished)?;
    Ok(profile)
}
