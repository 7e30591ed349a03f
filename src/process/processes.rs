//! Life of a process among those that a launcher started together: joining, threads and cores, failure.

use crate::output::{streams, terminal};
use crate::process::interrupt;
use anyhow::{Context, Result};
use ofa_supernet::Ranks;
use ofa_supernet::ranks::{Placement, divide, hints};
use std::time::{Duration, Instant};

/// Joins the other processes. Only the first process shows progress from then on.
pub fn join() -> Result<Ranks> {
    let ranks = Ranks::join()?;
    if ranks.is_distributed() {
        if !ranks.is_first() {
            terminal::leave_to_another_process();
        }
        let rank = ranks.rank();
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            streams::write_error(format_args!("rank {rank} failed:\n"));
            report(panic);
            // Unwinding would finalise MPI, which waits for the other ranks while they wait for this one. After an
            // abrupt exit the launcher ends them.
            std::process::exit(101);
        }));
    }
    Ok(ranks)
}

/// Starts the worker threads: `threads`, otherwise one per core. Processes on one machine that are not bound to
/// different cores divide the cores.
pub fn start_threads(ranks: &Ranks, threads: Option<usize>) -> Result<()> {
    let mut threads = threads;
    if ranks.is_distributed() {
        let texts = ranks.gather_text(&Placement::here().map_or(String::new(), |placement| placement.to_string()));
        let placements: Option<Vec<Placement>> = texts.iter().map(|text| Placement::parse(text)).collect();
        if let Some(placements) = placements {
            hints(&placements, threads).iter().for_each(terminal::hint);
            if threads.is_none() {
                let own = divide(&placements, ranks.rank());
                if let Some(cores) = &own {
                    cores.bind().with_context(|| format!("cannot bind this process to the cores {cores}"))?;
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

/// Number of ranks on this machine, which share its memory; 1 if the system does not tell.
pub fn on_this_machine(ranks: &Ranks) -> usize {
    let host = |text: &String| Placement::parse(text).map(|placement| placement.host);
    let all = ranks.gather_text(&Placement::here().map_or(String::new(), |placement| placement.to_string()));
    let own = host(&all[ranks.rank()]);
    if own.is_none() { 1 } else { all.iter().filter(|text| host(text) == own).count() }
}

/// Time that other ranks hold back an error, in which the first rank may report it and end them: an error that all
/// ranks have is shown once.
const FIRST_RANK_LEAD: Duration = Duration::from_secs(3);

/// Shows the error and ends all processes: the others would wait for this one.
pub fn fail(ranks: &Ranks, message: &str) -> ! {
    // A signal that came before does not mean that the launcher ends this process.
    if !ranks.is_first() && !interrupt::requested() {
        let start = Instant::now();
        while start.elapsed() < FIRST_RANK_LEAD {
            if interrupt::requested() {
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    terminal::error(format_args!("rank {}: {message}", ranks.rank()));
    ranks.abort(1)
}

/// Prints a hint if `threads`, the value of `option`, exceeds the machine's cores.
pub fn hint_at_cores(option: &str, threads: usize) {
    if let Ok(cores) = std::thread::available_parallelism()
        && threads > cores.get()
    {
        terminal::hint(format_args!(
            "{option} {threads} on {cores} cores: threads that share a core wait for each other; {cores} are most likely fastest"
        ));
    }
}
