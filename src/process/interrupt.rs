//! Ctrl-C, SIGTERM and (on Unix) SIGHUP and SIGUSR1: at the first signal long work finishes its step, saves and
//! returns; a second signal ends the process at once. The exit code is 128 plus the signal's number, as in shells.

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
    // mpirun forwards SIGUSR1 to its processes unchanged.
    #[cfg(unix)]
    signals.push(signal_hook::consts::SIGUSR1);
    #[cfg(unix)]
    if !ignored(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether this process was started with `signal` ignored, as `nohup` does with SIGHUP; false if the system does not
/// tell.
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
        // The handlers run in this order: exit if a signal came before, otherwise record this one.
        flag::register_conditional_shutdown(signal, 128 + signal, &REQUESTED)?;
        flag::register_usize(signal, &SIGNAL, signal as usize)?;
        flag::register(signal, &REQUESTED)?;
        Ok(())
    };
    signals().into_iter().try_for_each(install).context("cannot install the signal handlers")
}

/// Whether a signal has requested a stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Exit code after an interruption: 128 plus the number of the signal.
pub fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::SeqCst) as u8
}

/// Loop control: breaks once a stop is requested.
pub fn control() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Interruption with a message that says how to resume.
pub fn stopped(how_to_resume: String) -> anyhow::Error {
    anyhow::Error::from(ofa_supernet::Error::Interrupted).context(how_to_resume)
}

/// Fails if a stop is requested.
pub fn check() -> Result<()> {
    if requested() { Err(ofa_supernet::Error::Interrupted.into()) } else { Ok(()) }
}

/// Message to show if `error` is an interruption.
pub fn message(error: &anyhow::Error) -> Option<String> {
    let interrupted = error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(ofa_supernet::Error::is_interrupted)
            || cause.downcast_ref().is_some_and(ofa_evaluate::Error::is_interrupted)
            || cause.downcast_ref().is_some_and(ofa_extract::Error::is_interrupted)
    });
    interrupted.then(|| match error.chain().count() {
        1 => "stopped; unfinished work is not written and existing files are untouched; run the same command again"
            .into(),
        _ => error.to_string(),
    })
}
