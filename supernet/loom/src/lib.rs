//! The modules of `ofa-kernels` that share memory between threads, compiled with loom's locks, atomics and threads in
//! place of the standard library's. `cargo test --release -p ofa-loom` runs small models of them in every interleaving
//! of their threads.
//!
//! | module | model |
//! | --- | --- |
//! | `worker_pool`, `idle_pools` | each index of a job is done once, and leases end |
//! | `buffer_pool` | a buffer has one owner |
//! | `ordered` | results are taken in order |
//! | `sync` | loom's types under the standard library's names |
#![cfg(test)]

#[path = "../../kernels/src/buffer_pool.rs"]
mod buffer_pool;
#[path = "../../kernels/src/idle_pools.rs"]
mod idle_pools;
#[path = "../../kernels/src/ordered.rs"]
mod ordered;
#[path = "../../kernels/src/sync.rs"]
mod sync;
#[path = "../../kernels/src/worker_pool.rs"]
mod worker_pool;

use buffer_pool::BufferPool;
use idle_pools::IdlePools;
use loom::model::Builder;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use ordered::Ordered;
use std::panic::{AssertUnwindSafe, catch_unwind};
use worker_pool::WorkerPool;

/// Runs `model` in all interleavings with a bounded number of switches away from a runnable thread: nearly all faults
/// need one or two.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs a job of `count` indices; each must be done once, and writes must be visible afterwards.
fn each_once(pool: &WorkerPool, count: usize, helpers: usize) {
    let times: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
    pool.run(
        count,
        helpers,
        &|index| {
            times[index].fetch_add(1, Ordering::Relaxed);
        },
        false,
    );
    assert!(times.iter().all(|times| times.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_index_is_handed_out_once() {
    explore(2, || {
        let pool = WorkerPool::start(1, |_| {});
        each_once(&pool, 3, 1);
        pool.end();
    });
}

#[test]
fn a_worker_that_sleeps_is_woken_for_the_next_job_and_for_the_end() {
    explore(2, || {
        let pool = WorkerPool::start(1, |_| {});
        each_once(&pool, 2, 1);
        each_once(&pool, 2, 1);
        pool.end();
    });
}

#[test]
fn two_workers_share_a_job() {
    explore(1, || {
        let pool = WorkerPool::start(2, |_| {});
        each_once(&pool, 3, 2);
        pool.end();
    });
}

#[test]
fn work_inside_long_work_is_done() {
    explore(1, || {
        let pool = WorkerPool::start(1, |_| {});
        let done = AtomicUsize::new(0);
        let inner = |_| {
            done.fetch_add(1, Ordering::Relaxed);
        };
        pool.run(2, 1, &|_| pool.run(2, 1, &inner, false), true);
        assert_eq!(done.load(Ordering::Relaxed), 4);
        pool.end();
    });
}

#[test]
fn a_panic_reaches_the_caller_after_the_rest_is_done() {
    explore(2, || {
        let pool = WorkerPool::start(1, |_| {});
        let done = AtomicUsize::new(0);
        let work = |index| match index {
            0 => std::panic::panic_any("zero"),
            _ => {
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(3, 1, &work, false)));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"zero"));
        assert_eq!(done.load(Ordering::Relaxed), 2);
        pool.end();
    });
}

#[test]
fn two_callers_never_hold_one_pool_and_pools_beyond_the_limit_end() {
    explore(1, || {
        let idle = Arc::new(IdlePools::new());
        let held = Arc::new(Mutex::new(Vec::new()));
        let caller = |idle: Arc<IdlePools>, held: Arc<Mutex<Vec<usize>>>| {
            move || {
                let pool = idle.take(1, |_| {});
                let address = &raw const *pool as usize;
                let mut others = held.lock().unwrap();
                assert!(!others.contains(&address));
                others.push(address);
                drop(others);
                thread::yield_now();
                held.lock().unwrap().retain(|&other| other != address);
                idle.put(pool);
            }
        };
        let other = thread::spawn(caller(idle.clone(), held.clone()));
        caller(idle.clone(), held)();
        other.join().unwrap();
        assert_eq!(idle.len(), 1);
        // loom reports threads that never end: those of the pool that was not kept too.
        idle.take(1, |_| {}).end();
    });
}

#[test]
fn two_threads_never_hold_one_buffer() {
    explore(3, || {
        let pool = Arc::new(BufferPool::new());
        let first = pool.take(32);
        pool.put(first);
        let user = |pool: Arc<BufferPool>, mark: f32| {
            move || {
                let mut floats = pool.take(20);
                floats.fill(mark);
                thread::yield_now();
                assert!(floats.len() == 20 && floats.iter().all(|&value| value == mark));
                pool.put(floats);
            }
        };
        let other = thread::spawn(user(pool.clone(), 1.0));
        user(pool.clone(), 2.0)();
        other.join().unwrap();
        assert_eq!(pool.take(0).len(), 0);
    });
}

#[test]
fn results_are_taken_once_each_and_in_order() {
    explore(3, || {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let take = {
            let taken = taken.clone();
            move |result| taken.lock().unwrap().push(result)
        };
        let ordered = Arc::new(Ordered::new(3, take));
        let work = |index: usize| {
            thread::yield_now();
            10 * index
        };
        let other = thread::spawn({
            let ordered = ordered.clone();
            move || ordered.share(work)
        });
        ordered.share(work);
        other.join().unwrap();
        assert_eq!(*taken.lock().unwrap(), [0, 10, 20]);
    });
}
