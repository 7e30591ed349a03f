//! This process among those that a launcher started together: its threads and cores, and how it ends.

use crate::interrupt;
use crate::progress::{be_quiet, note};
use anyhow::{Context, Result};
use ofa_supernet::Ranks;
use ofa_supernet::ranks::{Placement, divide, hints};
use std::time::{Duration, Instant};

/// Joins the others. All but the first are quiet from then on.
pub fn join() -> Result<Ranks> {
    let ranks = Ranks::join()?;
    if ranks.is_distributed() {
        if !ranks.is_first() {
            be_quiet();
        }
        let rank = ranks.rank();
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            complain!("rank {rank} failed:");
            report(panic);
            // Unwinding would end MPI in good order and wait for the others, who wait for us. This way the launcher
            // ends them.
            std::process::exit(101);
        }));
    }
    Ok(ranks)
}

/// Starts the worker threads: as many as asked, else one a core. Processes on one machine that are not bound to
/// different cores divide them.
pub fn start_threads(ranks: &Ranks, threads: Option<usize>) -> Result<()> {
    let mut threads = threads;
    if ranks.is_distributed() {
        let texts = ranks.gather_text(&Placement::here().map_or(String::new(), |placement| placement.to_string()));
        let placements: Option<Vec<Placement>> = texts.iter().map(|text| Placement::parse(text)).collect();
        if let Some(placements) = placements {
            hints(&placements, threads).iter().for_each(|hint| note(format!("hint: {hint}")));
            if threads.is_none() {
                let own = divide(&placements, ranks.rank());
                if let Some(cores) = &own {
                    cores.bind().with_context(|| format!("cannot use the cores {cores} alone"))?;
                }
                threads = Some(own.map_or(1, |cores| cores.0.len()));
            }
        }
    }
    if let Some(threads) = threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().context("cannot start the worker threads")?;
    }
    Ok(())
}

/// How many of them run on this machine, where the system tells; they share its memory.
pub fn on_this_machine(ranks: &Ranks) -> usize {
    let host = |text: &String| Placement::parse(text).map(|placement| placement.host);
    let all = ranks.gather_text(&Placement::here().map_or(String::new(), |placement| placement.to_string()));
    let own = host(&all[ranks.rank()]);
    if own.is_none() { 1 } else { all.iter().filter(|text| host(text) == own).count() }
}

/// How long another rank's error waits for the first one's, which ends this process: of an error that all have, one
/// copy is enough.
const FIRST_ONE_FIRST: Duration = Duration::from_secs(3);

/// Shows the error and ends all processes: the others would wait for this one.
pub fn fail(ranks: &Ranks, message: &str) -> ! {
    // A signal that was there before is no sign that the launcher ends us.
    if !ranks.is_first() && !interrupt::requested() {
        let start = Instant::now();
        while start.elapsed() < FIRST_ONE_FIRST {
            if interrupt::requested() {
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    complain!("error: rank {} of {}: {message}", ranks.rank(), ranks.count());
    ranks.abort(1)
}

/// Says so where `threads`, the value of `option`, are more than the machine has cores.
pub fn hint_at_cores(option: &str, threads: usize) {
    if let Ok(cores) = std::thread::available_parallelism()
        && threads > cores.get()
    {
        note(format!(
            "hint: {option} {threads} on {cores} cores: threads that share a core wait for each other; {cores} are most likely fastest"
        ));
    }
}
