//! Worker pools that no caller has at the moment.

use super::sync::{Arc, Mutex, lock};
use super::worker_pool::WorkerPool;

/// Idle pools that are kept; several exist only if they were in use at the same time or differ in their number of
/// workers.
pub(super) const KEPT: usize = if cfg!(loom) { 1 } else { 8 };

/// Idle pools, last used at the end.
pub(super) struct IdlePools(Mutex<Vec<Arc<WorkerPool>>>);

impl IdlePools {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        IdlePools(Mutex::new(Vec::new()))
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        IdlePools(Mutex::new(Vec::new()))
    }

    /// A pool of `workers` workers for one caller: an idle one, or a new one whose threads call `on_start` first.
    pub(super) fn take(&self, workers: usize, on_start: fn(&Arc<WorkerPool>)) -> Arc<WorkerPool> {
        let mut idle = lock(&self.0);
        let fitting = idle.iter().rposition(|pool| pool.workers() == workers).map(|index| idle.remove(index));
        drop(idle);
        fitting.unwrap_or_else(|| WorkerPool::start(workers, on_start))
    }

    /// Returns a pool of [`take`](Self::take); the one that is idle longest ends if there are too many.
    pub(super) fn put(&self, pool: Arc<WorkerPool>) {
        let mut idle = lock(&self.0);
        idle.push(pool);
        let oldest = (idle.len() > KEPT).then(|| idle.remove(0));
        drop(idle);
        if let Some(oldest) = oldest {
            oldest.end();
        }
    }

    /// Number of idle pools.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}
