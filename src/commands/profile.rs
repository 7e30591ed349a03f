//! `ofa profile`

use crate::arguments::engine_flags::EngineArgs;
use crate::arguments::numbers;
use crate::output::progress::{Bar, counted};
use crate::output::terminal;
use crate::process::processes::hint_at_cores;
use crate::process::{interrupt, memory};
use crate::remote::{Remote, RemoteArgs};
use crate::run_folder::{RunConfig, RunFolder};
use anyhow::{Context, Error, Result, anyhow, ensure};
use clap::ArgGroup;
use ofa_evaluate::DeviceProfile;
use ofa_evaluate::model::NumberType;
use ofa_evaluate::profile::{
    Conditions, EngineOptions, Phase, ProfileOptions, ProfileProgress, check_name, import, import_csv, layers_csv,
    measure, measure_engine, memory as memory_of_profile,
};
use ofa_supernet::{SearchSpace, files};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Measure this device: a latency table for every block of the space, checked on random subnets.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("own_space").args(["space", "config"])))]
pub struct Args {
    /// Run folder; the profile is written to its devices/NAME.json.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Search space, without a trained run: a preset or a .toml file. Weights are random, which times do not depend on.
    #[arg(long, conflicts_with = "config")]
    space: Option<String>,
    /// Search space of this configuration, without a trained run.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of classes, with --space or --config.
    #[arg(long, default_value_t = 1000, requires = "own_space", value_parser = numbers::classes)]
    classes: usize,
    /// Name of the device in limits.
    #[arg(long, default_value = "this")]
    name: String,
    /// Threads that a model runs on.
    #[arg(long = "model-threads", default_value_t = 1, value_parser = numbers::threads)]
    model_threads: usize,
    /// Images per run; limits on this device's latency are for that many images together.
    #[arg(long, default_value_t = 1, value_parser = numbers::batch)]
    batch: usize,
    /// Rounds of measurement; each visits every network once [default: 15, with --engine 3].
    #[arg(long, value_parser = numbers::repetitions)]
    rounds: Option<usize>,
    /// Random subnets that check the predictions.
    #[arg(long, value_parser = numbers::checked_subnets)]
    check: Option<usize>,
    /// Number type that models compute in.
    #[arg(long, default_value = "f32", value_parser = number_type)]
    number_type: NumberType,
    /// Seed of weights, images and subnets.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    seed: u64,
    /// Import times from elsewhere instead of measuring: a CSV file as --layers prints, or the latency tables that the
    /// authors of once-for-all publish, one YAML file per resolution.
    #[arg(long, num_args = 1.., value_name = "TABLE", conflicts_with_all = ["model_threads", "batch", "rounds", "check", "seed", "number_type", "on"])]
    import: Vec<PathBuf>,
    /// Print a CSV table of the space's layers without times, to fill in for --import.
    #[arg(long, conflicts_with_all = ["import", "name", "model_threads", "batch", "rounds", "check", "seed", "number_type", "EngineArgs", "RemoteArgs"])]
    layers: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Print the progress as lines, for the program that started this one.
    #[arg(long, hide = true)]
    progress_lines: bool,
}

impl Args {
    fn has_own_space(&self) -> bool {
        self.space.is_some() || self.config.is_some()
    }

    /// The space to measure and its number of classes.
    fn space(&self, folder: &RunFolder) -> Result<(SearchSpace, usize)> {
        if !self.has_own_space() {
            let (space, classes) = folder.space()?;
            return Ok((space, classes.len()));
        }
        let run = folder.join("config.toml");
        ensure!(!run.exists(), "{}: the run has a space of its own; leave out --space and --config", run.display());
        let space = match (&self.space, &self.config) {
            (Some(space), _) => SearchSpace::named(space)?,
            (None, config) => RunConfig::read(config.as_deref().unwrap_or(Path::new("config.toml")))?.space,
        };
        Ok((space, self.classes))
    }

    /// Settings of the measurement.
    fn options(&self, classes: usize, is_engine: bool) -> ProfileOptions {
        let mut options = ProfileOptions::new(&self.name, classes);
        options.threads = self.model_threads;
        options.batch = self.batch;
        options.seed = self.seed;
        options.number_type = self.number_type;
        if is_engine {
            options.rounds = ENGINE_ROUNDS;
        }
        if let Some(rounds) = self.rounds {
            options.rounds = rounds;
        }
        if let Some(check) = self.check {
            options.check_subnets = check;
        }
        options
    }
}

fn number_type(text: &str) -> Result<NumberType, String> {
    [NumberType::F32, NumberType::Int8]
        .into_iter()
        .find(|number_type| number_type.to_string() == text)
        .ok_or_else(|| "models compute in f32 or int8".into())
}

/// Rounds in which another engine visits each network.
const ENGINE_ROUNDS: usize = 3;

pub fn run(args: &Args) -> Result<Value> {
    check_name(&args.name).map_err(Error::msg)?;
    let remote = args.remote.machine()?;
    let engine = args.engine.options(args.number_type)?;
    let folder = RunFolder::new(&args.run);
    let _lock = if args.has_own_space() { folder.lock_for_devices()? } else { folder.lock_shared()? };
    let (space, classes) = args.space(&folder)?;
    if args.layers {
        let table = layers_csv(&space, classes)?;
        say!("{}", table.trim_end());
        return Ok(json!({ "csv": table }));
    }
    let path = folder.join(&format!("devices/{}.json", args.name));
    if !args.import.is_empty() {
        return import_tables(args, &space, classes, &path);
    }
    let options = args.options(classes, engine.is_some());
    let profile = match &remote {
        Some(remote) => profile_remotely(remote, args, &space, &options, &path)?,
        None => {
            hint_at_cores("--model-threads", args.model_threads);
            if engine.is_none() {
                let need = |batch| Ok(memory_of_profile(&space, &ProfileOptions { batch, ..options.clone() })?);
                memory::check_batch("measuring the space's networks", options.batch, &need, 1)?;
            }
            let show = if args.progress_lines { Show::Lines } else { Show::Bar };
            profile_device(&folder, &space, &options, engine.as_ref(), show)?
        }
    };
    print_profile(&profile);
    if let Some(engine) = engine.filter(|engine| profile.check.as_ref().is_some_and(|check| !engine.is_met(check))) {
        terminal::warning(format_args!(
            "the error is above what --error {:.1}% asks for with {} networks; --samples allows more",
            100.0 * engine.error,
            engine.samples
        ));
    }
    say!("{} written", path.display());
    Ok(profile_json(&profile, &path))
}

/// What is measured, and its error.
pub fn profile_json(profile: &DeviceProfile, path: &Path) -> Value {
    json!({
        "device": profile.name,
        "file": path,
        "layers": profile.table().len(),
        "estimated": profile.table().iter().filter(|entry| entry.estimated).count(),
        "engine": profile.engine,
        "number_type": profile.number_type,
        "batch": profile.batch,
        "hardware": profile.hardware,
        "check": profile.check,
    })
}

/// Writes a profile of times from elsewhere.
fn import_tables(args: &Args, space: &SearchSpace, classes: usize, path: &Path) -> Result<Value> {
    let is_csv = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let of_csv = args.import.iter().filter(|path| is_csv(path)).count();
    ensure!(of_csv == 0 || of_csv == args.import.len(), "--import takes CSV files or YAML files, not both");
    let import = if of_csv > 0 { import_csv } else { import };
    let profile = import(space, classes, &args.name, &args.import)?;
    profile.save(path)?;
    say!(
        "device '{}': {} layers at resolutions {:?} from {}",
        profile.name,
        profile.table().len(),
        profile.space.resolutions,
        counted(args.import.len(), "table")
    );
    say!("{} written", path.display());
    Ok(profile_json(&profile, path))
}

/// Prints what was measured and its error, and says what makes it doubtful.
fn print_profile(profile: &DeviceProfile) {
    let int8 = if profile.number_type == NumberType::Int8 { ", int8" } else { "" };
    let together = match profile.batch {
        0 | 1 => String::new(),
        batch => format!("; latency is for one run of {batch} images together"),
    };
    if let Some(engine) = &profile.engine {
        say!(
            "device '{}': {}{}, {}{int8}{together}",
            profile.name,
            engine.name,
            engine.version.as_ref().map_or(String::new(), |version| format!(" {version}")),
            counted(engine.threads, "thread")
        );
    } else if let Some(hardware) = &profile.hardware {
        say!(
            "device '{}': {} ({}, {}{int8}){together}",
            profile.name,
            hardware.cpu,
            counted(hardware.threads, "thread"),
            hardware.instruction_set
        );
    }
    print_check(profile);
    if profile.check.as_ref().is_some_and(|check| check.median_error > 0.05) {
        terminal::warning(format_args!(
            "the median error is above 5 %, perhaps because the machine is busy; measure again when it is quiet, or with more --rounds"
        ));
    }
    if let Some(conditions) = &profile.conditions {
        complain_of(conditions);
    }
}

/// Says what in the machine's state makes the times doubtful.
fn complain_of(conditions: &Conditions) {
    if let Some(flags) = &conditions.throttled {
        terminal::warning(format_args!(
            "the machine throttles or lacks voltage ({flags}); mend that (power supply, cooling) and measure again"
        ));
    }
    let (spread, drift) = (conditions.spread(), conditions.drift());
    if spread > 0.2 {
        terminal::warning(format_args!(
            "a fixed network's times spread by {:.0} % meanwhile; the machine was busy or changed its clock: measure again when it is quiet",
            100.0 * spread
        ));
    } else if drift.abs() > 0.05 {
        terminal::warning(format_args!(
            "a fixed network became {:.0} % {} meanwhile, perhaps from heat; let the machine cool and measure again",
            100.0 * drift.abs(),
            if drift > 0.0 { "slower" } else { "faster" }
        ));
    }
}

/// Prints the number of layers and the error of predictions.
pub fn print_check(profile: &DeviceProfile) {
    let percent = |share: f64| 100.0 * share;
    let check = profile.check.as_ref().map_or(String::new(), |check| {
        let within = check.within_5.zip(check.within_10).map_or(String::new(), |(five, ten)| {
            format!("; {:.0} % of them within 5 %, {:.0} % within 10 %", percent(five), percent(ten))
        });
        format!(
            "; error on {} random subnets: median {:.1} %, 95th percentile {:.1} %{within}",
            check.subnets.len(),
            percent(check.median_error),
            percent(check.p95_error)
        )
    });
    let estimated = profile.table().iter().filter(|entry| entry.estimated).count();
    let estimated = if estimated > 0 { format!(", {estimated} of them estimated") } else { String::new() };
    say!("{} layers{estimated}{check}", profile.table().len());
}

/// Form in which progress is shown.
#[derive(Clone, Copy, PartialEq)]
pub enum Show {
    Bar,
    /// Lines on standard output, which [`parse_progress`] reads.
    Lines,
}

/// Measures with a progress bar and writes the profile into the folder. A stopped measurement is resumed.
pub fn profile_device(
    folder: &RunFolder,
    space: &SearchSpace,
    options: &ProfileOptions,
    engine: Option<&EngineOptions>,
    show: Show,
) -> Result<DeviceProfile> {
    let name = &options.name;
    let bar = Bar::new(format!("measuring '{name}'"), 0, "visits");
    let unfinished = folder.join(&format!("devices/{name}.unfinished"));
    let mut last = None;
    let mut progress = |progress: ProfileProgress| {
        // While an engine runs, the same progress is reported many times.
        if last.replace(progress) != Some(progress) {
            match show {
                Show::Bar => advance(&bar, progress),
                Show::Lines => say!("{}", progress_line(progress)),
            }
        }
        interrupt::control()
    };
    let profile = match engine {
        None => measure(space, options, Some(&unfinished), &mut progress),
        Some(engine) => {
            let work = folder.join(&format!("devices/{name}.engine"));
            measure_engine(space, options, engine, (&work, Some(&unfinished)), &mut progress)
        }
    };
    drop(bar);
    let kept = format!("is kept in {}; run the same command to resume", unfinished.display());
    if interrupt::requested() && profile.is_err() && unfinished.exists() {
        return Err(interrupt::stopped(format!("stopped; what was measured {kept}")));
    }
    let profile = profile.map_err(|error| match engine.is_some() && unfinished.exists() {
        true => anyhow!("{error}; what was measured until then {kept}"),
        false => error.into(),
    })?;
    profile.save(folder.join(&format!("devices/{name}.json")))?;
    files::remove_file(&unfinished)?;
    Ok(profile)
}

/// Measures on another machine, by this program there, and writes the profile to `path`.
fn profile_remotely(
    remote: &Remote,
    args: &Args,
    space: &SearchSpace,
    options: &ProfileOptions,
    path: &Path,
) -> Result<DeviceProfile> {
    let text = toml::to_string(space).context("the space has no TOML form")?;
    let name = &options.name;
    // Other options are other work, with files of its own.
    let key = files::checksum(format!("{text}{options:?}{}", args.engine.flags().join(" ")).as_bytes());
    let place = remote.open(&format!("{name}-{key:08x}"))?;
    place.put("space.toml", text.as_bytes())?;
    let mut arguments: Vec<String> = ["profile", "--space", "space.toml", "--run", "run", "--progress-lines"]
        .map(String::from)
        .into_iter()
        .chain(["--name".into(), name.clone()])
        .collect();
    let numbers = [
        ("--classes", Some(options.classes as u64)),
        ("--model-threads", Some(options.threads as u64)),
        ("--batch", Some(options.batch as u64)),
        ("--seed", Some(options.seed)),
        ("--rounds", args.rounds.map(|rounds| rounds as u64)),
        ("--check", args.check.map(|check| check as u64)),
    ];
    for (flag, number) in numbers {
        number.iter().for_each(|number| arguments.extend([flag.to_string(), number.to_string()]));
    }
    arguments.extend(["--number-type".into(), options.number_type.to_string()]);
    arguments.extend(args.engine.flags());
    let bar = Bar::new(format!("measuring '{name}'"), 0, "visits");
    place.run(&arguments, &mut |line| {
        if let Some(progress) = parse_progress(line) {
            advance(&bar, progress);
        }
    })?;
    drop(bar);
    let file = format!("run/devices/{name}.json");
    let profile = DeviceProfile::from_json(&place.get(&file)?, Path::new(&file))?;
    ensure!(profile.space == *space && profile.name == *name, "{file} came back for another space or name");
    profile.save(path)?;
    place.close();
    Ok(profile)
}

fn advance(bar: &Bar, progress: ProfileProgress) {
    let phase = match progress.phase {
        Phase::Layers => "timing layers",
        Phase::Subnets => "timing whole subnets",
    };
    bar.advance(progress.done, progress.total, [phase.to_string()]);
}

fn progress_line(progress: ProfileProgress) -> String {
    let phase = match progress.phase {
        Phase::Layers => "layers",
        Phase::Subnets => "subnets",
    };
    format!("progress {phase} {} {}", progress.done, progress.total)
}

/// Reads a line of [`progress_line`].
fn parse_progress(line: &str) -> Option<ProfileProgress> {
    let mut words = line.strip_prefix("progress ")?.split(' ');
    let phase = match words.next()? {
        "layers" => Phase::Layers,
        "subnets" => Phase::Subnets,
        _ => return None,
    };
    let mut number = || words.next()?.parse().ok();
    Some(ProfileProgress { phase, done: number()?, total: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        for phase in [Phase::Layers, Phase::Subnets] {
            let progress = ProfileProgress { phase, done: 3, total: 70 };
            assert_eq!(parse_progress(&progress_line(progress)), Some(progress));
        }
        for other in ["", "progress", "progress layers 3", "progress heads 1 2", "device 'x'"] {
            assert_eq!(parse_progress(other), None);
        }
    }
}
