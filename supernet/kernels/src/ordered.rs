//! Work whose results are taken in order, whichever thread finishes first.

use super::sync::atomic::{AtomicUsize, Ordering};
use super::sync::{Mutex, lock};
use std::collections::BTreeMap;

/// Indices below a count that are handed out to threads, and the results that are waiting for those of smaller indices.
pub(super) struct Ordered<T, R> {
    count: usize,
    next: AtomicUsize,
    results: Mutex<Results<T, R>>,
}

struct Results<T, R> {
    take: T,
    /// Number of results that `take` has received.
    taken: usize,
    waiting: BTreeMap<usize, R>,
}

impl<T: FnMut(R), R> Ordered<T, R> {
    /// Work on `count` indices; `take` receives the results one by one in index order.
    pub(super) fn new(count: usize, take: T) -> Self {
        let results = Results { take, taken: 0, waiting: BTreeMap::new() };
        Ordered { count, next: AtomicUsize::new(0), results: Mutex::new(results) }
    }

    /// Runs `work` on one index after the other until none is left. `take` runs on the thread that completed the
    /// sequence.
    pub(super) fn share(&self, work: impl Fn(usize) -> R) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            let result = work(index);
            let mut results = lock(&self.results);
            let Results { take, taken, waiting } = &mut *results;
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(taken) {
                take(result);
                *taken += 1;
            }
        }
    }
}
