//! Feeds mutated files to every parser; see `fuzz/README.md`.

mod mutate;
mod seeds;
mod targets;

use anyhow::{Context, Result, bail};
use clap::Parser;
use mutate::mutate;
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// Longest time per input.
const SLOW: Duration = Duration::from_secs(10);
/// Most memory that the process may use.
const MEMORY: u64 = 4 << 30;
/// Number of inputs kept for mutation, and their greatest length.
const CORPUS: usize = 2000;
const LONGEST: usize = 256 << 10;

/// Feeds mutated files to every parser.
#[derive(Parser)]
struct Args {
    /// Seconds in all, divided among the targets.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Only this target; may be repeated.
    #[arg(long)]
    target: Vec<String>,
    /// Seed of all mutations.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Add inputs with new outcomes to the corpus on disk.
    #[arg(long)]
    keep: bool,
    /// Write the seeds that the program itself can make, and end.
    #[arg(long)]
    write_seeds: bool,
    /// Run these inputs, show their outcomes, and end (with one --target).
    inputs: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if args.write_seeds {
        return seeds::write(&root.join("corpus"));
    }
    if let Some(unknown) = args.target.iter().find(|name| !TARGETS.iter().any(|target| target.name == **name)) {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("no target is named '{unknown}'; known are {}", names.join(", "));
    }
    let chosen: Vec<&Target> = TARGETS
        .iter()
        .filter(|target| args.target.is_empty() || args.target.iter().any(|n| n == target.name))
        .collect();
    // In memory where the system has such a folder, since a file is written for each input.
    let shared = Path::new("/dev/shm");
    let work = if shared.is_dir() { tempfile::tempdir_in(shared)? } else { tempfile::tempdir()? };
    if !args.inputs.is_empty() {
        let [target] = chosen[..] else { bail!("name the inputs' --target") };
        for path in &args.inputs {
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            println!("{}: {:?}", path.display(), target.on(work.path(), &bytes));
        }
        return Ok(());
    }
    println!("inputs are in {}", work.path().display());
    let share = Duration::from_secs_f64(args.seconds / chosen.len() as f64);
    let mut findings = 0;
    for target in chosen {
        findings += fuzz(target, &args, root, &work.path().join(target.name), share)?;
    }
    if findings > 0 {
        // The inputs of the last target help with examining it.
        bail!("{findings} findings, in {}", root.join("findings").display());
    }
    Ok(())
}

/// Runs one target, and returns the number of findings.
fn fuzz(target: &Target, args: &Args, root: &Path, work: &Path, time: Duration) -> Result<usize> {
    fs::create_dir_all(work)?;
    let folder = root.join("corpus").join(target.name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("{}: no seeds", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    let mut corpus: Vec<Vec<u8>> = paths.iter().map(fs::read).collect::<Result<_, _>>()?;
    let _watchdog = Watchdog::start(target.name);
    let seed_count = corpus.len();
    let (mut outcomes, mut findings) = (BTreeMap::<String, u64>::new(), HashSet::new());
    let start = Instant::now();
    let (mut number, mut is_seed_accepted) = (0, false);
    while start.elapsed() < time || number < seed_count as u64 {
        let mut rng = generator(args.seed, Stream::Sampling, &[number]);
        // Unchanged seeds come first.
        let input = match corpus.get(number as usize).filter(|_| (number as usize) < seed_count) {
            Some(seed) => seed.clone(),
            None => {
                // Half of all inputs are one mutation away from a valid file.
                let bases = if rng.random() { seed_count } else { corpus.len() };
                let (base, other) = (rng.random_range(0..bases), rng.random_range(0..corpus.len()));
                mutate(&corpus[base], &corpus[other], &mut rng)
            }
        };
        Watchdog::input(number);
        let outcome = catch_unwind(AssertUnwindSafe(|| target.on(work, &input)));
        number += 1;
        is_seed_accepted |= number <= seed_count as u64 && matches!(outcome, Ok(Ok(())));
        let finding = match &outcome {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Some(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic").to_string())
            }
            Ok(Err(targets::Fault::Wrong(message))) => Some(message.clone()),
            Ok(_) => over_memory(number),
        };
        if let Some(message) = finding
            && findings.insert(kind(&message, &input))
        {
            let path = root.join("findings").join(format!("{}-{number}", target.name));
            fs::create_dir_all(root.join("findings"))?;
            fs::write(&path, &input)?;
            eprintln!("FINDING {}: {message}; input in {}", target.name, path.display());
        }
        let key = match &outcome {
            Ok(Ok(())) => "accepted".to_string(),
            Ok(Err(targets::Fault::Refused(message))) => kind(message, &input),
            _ => continue,
        };
        let count = outcomes.entry(key).or_default();
        *count += 1;
        if *count == 1 && number > seed_count as u64 && corpus.len() < CORPUS && input.len() <= LONGEST {
            if args.keep {
                fs::write(folder.join(format!("found-{}-{number}", args.seed)), &input)?;
            }
            corpus.push(input);
        }
    }
    if !is_seed_accepted {
        // Mutations of files that are refused at once do not reach the parser.
        let message = "no seed is accepted";
        findings.insert(message.to_string());
        eprintln!("FINDING {}: {message}; write seeds of the present format with --write-seeds", target.name);
    }
    let accepted = outcomes.get("accepted").copied().unwrap_or(0);
    println!(
        "{:16} {number:9} inputs, {:5.1} % accepted, {:3} kinds of refusal, {} findings",
        target.name,
        100.0 * accepted as f64 / number.max(1) as f64,
        outcomes.len() - usize::from(accepted > 0),
        findings.len()
    );
    Ok(findings.len())
}

/// Words of a message that do not come from the input: equal for inputs of one kind.
fn kind(message: &str, input: &[u8]) -> String {
    let input = String::from_utf8_lossy(input);
    let words = message.split(|letter: char| !letter.is_ascii_alphabetic());
    let own: Vec<&str> = words
        .filter(|word| word.len() >= 4 && !input.contains(word) && !word.chars().all(|c| c.is_ascii_hexdigit()))
        .take(20)
        .collect();
    own.join(" ")
}

fn over_memory(number: u64) -> Option<String> {
    let peak = number.is_multiple_of(64).then(ofa_evaluate::memory::peak).flatten()?;
    (peak > MEMORY).then(|| format!("{} MiB of memory (one of the last 64 inputs)", peak >> 20))
}

/// Milliseconds from the start of the program to the start of the current input.
static BEGAN: AtomicU64 = AtomicU64::new(u64::MAX);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static START: Mutex<Option<Instant>> = Mutex::new(None);

/// Ends the process if an input takes too long.
struct Watchdog {
    _alive: Arc<()>,
}

impl Watchdog {
    fn start(target: &'static str) -> Watchdog {
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        std::thread::spawn(move || {
            while watched.upgrade().is_some() {
                std::thread::sleep(Duration::from_millis(500));
                let began = BEGAN.load(Ordering::SeqCst);
                if began != u64::MAX && now() > began + SLOW.as_millis() as u64 && watched.upgrade().is_some() {
                    let number = NUMBER.load(Ordering::SeqCst);
                    eprintln!(
                        "FINDING {target}: no answer to input {number} after {SLOW:?}; it is the file in the folder above"
                    );
                    std::process::exit(1);
                }
            }
        });
        Watchdog { _alive: alive }
    }

    fn input(number: u64) {
        NUMBER.store(number, Ordering::SeqCst);
        BEGAN.store(now(), Ordering::SeqCst);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        BEGAN.store(u64::MAX, Ordering::SeqCst);
    }
}

fn now() -> u64 {
    let mut start = START.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    start.get_or_insert_with(Instant::now).elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_that_panics_or_accepts_nonsense_is_found_once_a_kind() {
        fn broken(_: &Path, bytes: &[u8]) -> Result<(), targets::Fault> {
            match bytes.len() {
                9.. => panic!("too long"),
                5.. => Err(targets::Fault::Refused("quite long".into())),
                1.. => Ok(()),
                0 => Err(targets::Fault::Wrong("nothing is something".into())),
            }
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("corpus/broken")).unwrap();
        fs::write(root.path().join("corpus/broken/seed"), b"abc").unwrap();
        let target = Target { name: "broken", run: broken };
        let args = Args::parse_from(["ofa-fuzz"]);
        let time = Duration::from_millis(200);
        let found = fuzz(&target, &args, root.path(), &root.path().join("work"), time).unwrap();
        let inputs: Vec<usize> = fs::read_dir(root.path().join("findings"))
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap().len())
            .collect();
        assert_eq!((found, inputs.len()), (2, 2));
        assert!(inputs.iter().all(|&length| length == 0 || length > 8), "{inputs:?}");
    }

    #[test]
    fn a_target_that_refuses_all_its_seeds_is_a_finding() {
        fn of_long_files(_: &Path, bytes: &[u8]) -> Result<(), targets::Fault> {
            if bytes.len() > 3 { Ok(()) } else { Err(targets::Fault::Refused("an older format".into())) }
        }
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("corpus/changed");
        fs::create_dir_all(&folder).unwrap();
        let target = Target { name: "changed", run: of_long_files };
        // The first seed is refused, the second one is not.
        let found = [&b"abc"[..], b"abcdef"].map(|seed| {
            fs::write(folder.join(seed.len().to_string()), seed).unwrap();
            let args = Args::parse_from(["ofa-fuzz"]);
            fuzz(&target, &args, root.path(), &root.path().join("work"), Duration::from_millis(20)).unwrap()
        });
        assert_eq!(found, [1, 0]);
    }
}
