//! Ctrl-C and SIGTERM: long work finishes its step, saves and returns; a second signal leaves at once.

use anyhow::{Context, Result};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("cannot install the interrupt handler")
}

/// Whether a stop was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The same as a loop's control.
pub fn control() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Fails if a stop was asked for.
pub fn check() -> Result<()> {
    if requested() { Err(ofa_supernet::Error::Interrupted.into()) } else { Ok(()) }
}

/// Whether an error is an interruption.
pub fn is(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ofa_supernet::Error::Interrupted)))
        || (requested() && error.to_string().contains("interrupted"))
}
