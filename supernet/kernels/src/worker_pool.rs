//! Threads that share the work of one caller at a time.
//!
//! A step has hundreds of kernels, many shorter than a millisecond. Threads that sleep between kernels, as in a general
//! pool, spend a good part of that time on waking up; workers spin briefly before they sleep.

use super::sync::atomic::{AtomicUsize, Ordering};
use super::sync::{Arc, Condvar, Mutex, hint, lock, thread};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Polls, for work or for its end, before a thread yields its processor between two polls: some 50 microseconds.
const YIELD_AFTER: usize = if cfg!(loom) { 0 } else { 1000 };

/// Polls before a worker sleeps: a millisecond or two.
const SLEEP_AFTER: usize = YIELD_AFTER + if cfg!(loom) { 1 } else { 4000 };

pub(super) type Work<'a> = dyn Fn(usize) + Sync + 'a;

pub(super) struct WorkerPool {
    /// Number of workers, not counting the caller.
    workers: usize,
    signal: Mutex<WakeSignal>,
    /// Incremented whenever workers have something to see: a new job, or the end. Written with the signal locked.
    changes: AtomicUsize,
    wake: Condvar,
}

struct WakeSignal {
    /// Jobs that may have indices left, oldest first.
    jobs: Vec<Arc<Job>>,
    asleep: usize,
    ended: bool,
}

impl WorkerPool {
    /// Starts `workers` threads, each of which calls `on_start` first. If a thread cannot be started, the pool has
    /// fewer workers.
    pub(super) fn start(workers: usize, on_start: fn(&Arc<WorkerPool>)) -> Arc<WorkerPool> {
        let pool = Arc::new(WorkerPool {
            workers,
            signal: Mutex::new(WakeSignal { jobs: Vec::new(), asleep: 0, ended: false }),
            changes: AtomicUsize::new(0),
            wake: Condvar::new(),
        });
        for _ in 0..workers {
            let own = pool.clone();
            let body = move || {
                on_start(&own);
                own.work();
            };
            if thread::Builder::new().name("kernels".into()).spawn(body).is_err() {
                break;
            }
        }
        pool
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Lets the workers end once no job is left.
    pub(super) fn end(&self) {
        let mut signal = lock(&self.signal);
        signal.ended = true;
        self.announce(&signal);
    }

    /// Runs `work(0)`, `work(1)`, ... `work(count - 1)` on this thread and on up to `helpers` workers. A panic in
    /// `work` reaches the caller after the other indices are done.
    ///
    /// With `long`, for work that itself calls `run`, this thread helps in those calls while it waits for the end.
    pub(super) fn run(&self, count: usize, helpers: usize, work: &Work<'_>, long: bool) {
        // SAFETY: only the lifetime changes. A job calls `work` only for indices below `count`, each once, and counts
        // an index as done after its call; this function returns after `count` indices are done, so no call outlives
        // the borrow. No unwinding ends it earlier: panics of `work` are caught.
        let work = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        let job = Arc::new(Job {
            work,
            count,
            free_slots: AtomicUsize::new(helpers),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        self.publish(&job);
        job.run_to_completion();
        self.withdraw(&job);
        let mut looks = 0;
        while job.done.load(Ordering::Acquire) < count {
            match if long { self.pick_job() } else { None } {
                Some(other) => {
                    other.run_to_completion();
                    looks = 0;
                }
                None => pause(&mut looks),
            }
        }
        let panic = lock(&job.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn publish(&self, job: &Arc<Job>) {
        let mut signal = lock(&self.signal);
        signal.jobs.push(job.clone());
        self.announce(&signal);
    }

    fn announce(&self, signal: &WakeSignal) {
        self.changes.fetch_add(1, Ordering::Release);
        if signal.asleep > 0 {
            self.wake.notify_all();
        }
    }

    fn withdraw(&self, job: &Arc<Job>) {
        lock(&self.signal).jobs.retain(|other| !Arc::ptr_eq(other, job));
    }

    /// A job in which the calling thread has taken a slot.
    fn pick_job(&self) -> Option<Arc<Job>> {
        lock(&self.signal).jobs.iter().find(|job| job.take_slot()).cloned()
    }

    /// Main loop of a worker.
    fn work(&self) {
        loop {
            let seen = self.changes.load(Ordering::Acquire);
            if let Some(job) = self.pick_job() {
                job.run_to_completion();
                continue;
            }
            if lock(&self.signal).ended {
                return;
            }
            let mut looks = 0;
            while self.changes.load(Ordering::Acquire) == seen {
                if looks < SLEEP_AFTER {
                    pause(&mut looks);
                    continue;
                }
                let mut signal = lock(&self.signal);
                while self.changes.load(Ordering::Acquire) == seen {
                    signal.asleep += 1;
                    signal = self.wake.wait(signal).unwrap_or_else(std::sync::PoisonError::into_inner);
                    signal.asleep -= 1;
                }
            }
        }
    }
}

struct Job {
    work: &'static Work<'static>,
    count: usize,
    /// Number of workers that may still join.
    free_slots: AtomicUsize,
    /// The next index.
    next: AtomicUsize,
    /// Indices done.
    done: AtomicUsize,
    /// The first panic of the work.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Takes a slot for the calling thread; false if no index or no slot is left.
    fn take_slot(&self) -> bool {
        let take = |slots: usize| slots.checked_sub(1);
        self.next.load(Ordering::Relaxed) < self.count
            && self.free_slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn run_to_completion(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(index))) {
                lock(&self.panic).get_or_insert(panic);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }
}

/// Waits between two polls, by spinning at first and yielding later.
#[cfg_attr(loom, expect(clippy::absurd_extreme_comparisons, reason = "loom's workers yield at their first look"))]
fn pause(looks: &mut usize) {
    *looks += 1;
    match *looks < YIELD_AFTER {
        true => hint::spin_loop(),
        false => thread::yield_now(),
    }
}
