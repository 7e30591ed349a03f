//! Ctrl-C, SIGTERM and (where there are such) SIGHUP and SIGUSR1: long work finishes its step, saves and returns; a
//! second signal leaves at once. The exit code is 128 and the signal's number, as shells have it.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static SIGNAL: AtomicUsize = AtomicUsize::new(SIGINT as usize);

/// The signals that ask for a stop.
fn signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    // The one that mpirun hands on to its processes as it is.
    #[cfg(unix)]
    signals.push(signal_hook::consts::SIGUSR1);
    #[cfg(unix)]
    if !ignored(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether whoever started this process had it ignore `signal`, as `nohup` does with SIGHUP; false where the system
/// does not tell.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Installs the handlers.
pub fn install() -> Result<()> {
    let install = |signal: i32| -> std::io::Result<()> {
        // In the order in which they run: leave if one came before, else remember which one this is.
        flag::register_conditional_shutdown(signal, 128 + signal, &REQUESTED)?;
        flag::register_usize(signal, &SIGNAL, signal as usize)?;
        flag::register(signal, &REQUESTED)?;
        Ok(())
    };
    signals().into_iter().try_for_each(install).context("cannot install the signal handlers")
}

/// Whether a stop was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// 128 and the number of the signal that asked for it.
pub fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::SeqCst) as u8
}

/// The same as a loop's control.
pub fn control() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// An interruption that says how to go on.
pub fn stopped(how_to_go_on: String) -> anyhow::Error {
    anyhow::Error::from(ofa_supernet::Error::Interrupted).context(how_to_go_on)
}

/// Fails if a stop was asked for.
pub fn check() -> Result<()> {
    if requested() { Err(ofa_supernet::Error::Interrupted.into()) } else { Ok(()) }
}

/// What to tell people if an error is an interruption.
pub fn message(error: &anyhow::Error) -> Option<String> {
    let interrupted = error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(ofa_supernet::Error::is_interrupted)
            || cause.downcast_ref().is_some_and(ofa_evaluate::Error::is_interrupted)
            || cause.downcast_ref().is_some_and(ofa_extract::Error::is_interrupted)
    });
    interrupted.then(|| match error.chain().count() {
        1 => {
            "stopped; what was under way is not written, what was there is untouched: run the same command again".into()
        }
        _ => error.to_string(),
    })
}
