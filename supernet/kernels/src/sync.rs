//! Locks, atomics and threads of the standard library, or of loom, which tries every interleaving (package `ofa-loom`).

#[cfg(loom)]
pub(super) use loom::{
    hint,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(loom))]
pub(super) use std::{
    hint,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Locks a mutex and ignores poisoning: its data is consistent at any time, so a panic elsewhere changes nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
