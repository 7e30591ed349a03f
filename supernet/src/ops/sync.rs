//! Locks, atomics and threads: those of the standard library, or loom's, which tries every order of what threads do (package `ofa-loom`).

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

/// Locks a mutex whose data is whole at any time, so that a panic elsewhere changes nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
