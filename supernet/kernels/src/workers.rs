//! Assignment of worker threads to callers. A caller leases a [`WorkerPool`] for the duration of a kernel, with one
//! worker fewer than it has threads (`parallel::threads`): two networks in two rayon pools neither wait for each other
//! nor share threads.

use super::idle_pools::IdlePools;
use super::worker_pool::{Work, WorkerPool};
use std::cell::RefCell;
use std::sync::Arc;

static IDLE: IdlePools = IdlePools::new();

thread_local! {
    /// The pool that shares the work on which this thread runs a part.
    static CURRENT: RefCell<Option<Arc<WorkerPool>>> = const { RefCell::new(None) };
}

/// Runs `work(0)`, `work(1)`, ... `work(count - 1)` on this thread and on up to `helpers` others, where `helpers` is
/// one less than the caller's number of threads.
pub(super) fn run(count: usize, helpers: usize, work: &Work<'_>) {
    share(count, helpers, helpers, work, false);
}

/// Runs long `work` that itself calls [`run`], on at most `at_once` of the `helpers`; a thread without such work helps
/// in those calls.
pub(super) fn run_long(count: usize, at_once: usize, helpers: usize, work: &Work<'_>) {
    share(count, at_once, helpers, work, true);
}

fn share(count: usize, at_once: usize, helpers: usize, work: &Work<'_>, long: bool) {
    let at_once = at_once.min(count.saturating_sub(1));
    if at_once == 0 {
        (0..count).for_each(work);
        return;
    }
    // Nested work is shared among the threads of the outer call.
    let current = CURRENT.with_borrow(Clone::clone);
    match current {
        Some(pool) => pool.run(count, at_once, work, long),
        None => Lease::new(helpers).0.run(count, at_once, work, long),
    }
}

/// A pool leased to one caller.
struct Lease(Arc<WorkerPool>);

impl Lease {
    fn new(workers: usize) -> Self {
        let pool = IDLE.take(workers, |pool| CURRENT.set(Some(pool.clone())));
        CURRENT.set(Some(pool.clone()));
        Lease(pool)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        CURRENT.set(None);
        IDLE.put(self.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::idle_pools::KEPT;
    use super::super::sync::{Mutex, lock};
    use super::*;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
    use std::thread;

    fn each_once(count: usize, helpers: usize) {
        let times: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
        run(count, helpers, &|index| {
            times[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(times.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{count} with {helpers}");
    }

    #[test]
    fn every_index_is_done_once_however_many_help_and_ask() {
        for count in [0, 1, 2, 7, 100] {
            for helpers in [0, 1, 3, 9] {
                each_once(count, helpers);
            }
        }
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|round| each_once(round % 9, 3)));
            }
        });
    }

    /// Waits until `count` threads are here at the same time; false if they do not arrive in time.
    fn meet(here: &AtomicUsize, count: usize) -> bool {
        here.fetch_add(1, Ordering::SeqCst);
        let start = std::time::Instant::now();
        while here.load(Ordering::SeqCst) < count && start.elapsed().as_secs() < 20 {
            thread::yield_now();
        }
        here.load(Ordering::SeqCst) >= count
    }

    #[test]
    fn helpers_that_fell_asleep_help_again() {
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(30));
            let here = AtomicUsize::new(0);
            run(3, 2, &|_| assert!(meet(&here, 3)));
        }
    }

    #[test]
    fn callers_in_two_rayon_pools_have_all_their_threads_at_the_same_time() {
        let here = AtomicUsize::new(0);
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for threads in [3, 4] {
                let (here, start) = (&here, &start);
                scope.spawn(move || {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| {
                        start.wait();
                        super::super::parallel::each(threads, |_| assert!(meet(here, 3 + 4)));
                    });
                });
            }
        });
    }

    #[test]
    fn a_caller_has_as_many_threads_as_its_own_pool_whatever_came_before() {
        for threads in [6, 2, 4, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (ids, here) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
            pool.install(|| {
                super::super::parallel::each(50, |index| {
                    lock(&ids).insert(thread::current().id());
                    assert!(index >= threads || meet(&here, threads));
                });
            });
            assert_eq!(lock(&ids).len(), threads);
        }
    }

    #[test]
    fn idle_pools_are_few() {
        for workers in 1..=2 * KEPT {
            each_once(workers + 1, workers);
        }
        assert!(IDLE.len() <= KEPT);
    }

    #[test]
    fn work_inside_work_is_done() {
        let total = AtomicUsize::new(0);
        let add = |index| {
            total.fetch_add(index, Ordering::Relaxed);
        };
        run(6, 2, &|_| run(5, 2, &add));
        assert_eq!(total.into_inner(), 60);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_the_rest_is_done() {
        let done = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            run(20, 2, &|index| match index {
                3 => panic!("three"),
                _ => assert!(done.fetch_add(1, Ordering::Relaxed) < 20),
            })
        }));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"three"));
        each_once(20, 2);
    }
}
