//! The threads that share a kernel's ranges. A step has hundreds of kernels, many of less than a millisecond: threads that sleep between them, as
//! those of a general pool do, take a good part of that to wake. These ones look out for the next kernel for a while first.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How often a thread looks for work, or for the end of it, before it lets others have its processor between two looks: some 50 microseconds.
const SPINS: usize = 1000;

/// How often a helper looks in all before it goes to sleep: a millisecond or two.
const LOOKS: usize = SPINS + 4000;

/// Runs `work(0)`, `work(1)`, ... `work(count - 1)` on this thread and on up to `helpers` others that have nothing to do.
pub(super) fn run(count: usize, helpers: usize, work: &(dyn Fn(usize) + Sync)) {
    share(count, helpers, work, || false);
}

/// As [`run`], of work that takes long and itself calls [`run`]: a thread that has to wait for the end of it helps there meanwhile.
pub(super) fn run_long(count: usize, helpers: usize, work: &(dyn Fn(usize) + Sync)) {
    share(count, helpers, work, || CREW.open().map(|job| job.take_part()).is_some());
}

/// `meanwhile` is what this thread does while it waits for others; whether there was something.
fn share(count: usize, helpers: usize, work: &(dyn Fn(usize) + Sync), meanwhile: impl Fn() -> bool) {
    let helpers = helpers.min(count.saturating_sub(1));
    if helpers == 0 {
        (0..count).for_each(work);
        return;
    }
    // SAFETY: only the lifetime changes. The reference is used for indices below `count` alone, and until all of them are done this function stays.
    let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
    let job = Arc::new(Job {
        work,
        count,
        places: AtomicUsize::new(helpers),
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        panic: Mutex::new(None),
    });
    CREW.publish(job.clone(), helpers);
    job.take_part();
    CREW.withdraw(&job);
    let mut looks = 0;
    while job.done.load(Ordering::Acquire) < count {
        match meanwhile() {
            true => looks = 0,
            false => wait(&mut looks),
        }
    }
    if let Some(panic) = lock(&job.panic).take() {
        resume_unwind(panic);
    }
}

struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    count: usize,
    /// Helpers that may still join.
    places: AtomicUsize,
    /// The next index.
    next: AtomicUsize,
    /// Indices done.
    done: AtomicUsize,
    /// The first panic of the work.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Whether another thread may take part; it has a place then.
    fn join(&self) -> bool {
        let take = |places: usize| places.checked_sub(1);
        self.next.load(Ordering::Relaxed) < self.count
            && self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn take_part(&self) {
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

struct Crew {
    notice: Mutex<Notice>,
    /// Jobs published so far; changes with the notice locked.
    published: AtomicUsize,
    wake: Condvar,
}

struct Notice {
    /// Those that may have indices left, oldest first.
    jobs: Vec<Arc<Job>>,
    /// Threads that were started.
    threads: usize,
    asleep: usize,
}

static CREW: Crew = Crew {
    notice: Mutex::new(Notice { jobs: Vec::new(), threads: 0, asleep: 0 }),
    published: AtomicUsize::new(0),
    wake: Condvar::new(),
};

impl Crew {
    fn publish(&'static self, job: Arc<Job>, helpers: usize) {
        let mut notice = lock(&self.notice);
        notice.jobs.push(job);
        self.published.fetch_add(1, Ordering::Release);
        // One that cannot be started is one that does not help.
        while notice.threads < helpers && thread::Builder::new().name("kernels".into()).spawn(|| self.help()).is_ok() {
            notice.threads += 1;
        }
        if notice.asleep > 0 {
            self.wake.notify_all();
        }
    }

    fn withdraw(&self, job: &Arc<Job>) {
        lock(&self.notice).jobs.retain(|other| !Arc::ptr_eq(other, job));
    }

    /// A job in which the caller has a place.
    fn open(&self) -> Option<Arc<Job>> {
        lock(&self.notice).jobs.iter().find(|job| job.join()).cloned()
    }

    fn help(&self) {
        loop {
            let seen = self.published.load(Ordering::Acquire);
            if let Some(job) = self.open() {
                job.take_part();
                continue;
            }
            let mut looks = 0;
            while self.published.load(Ordering::Acquire) == seen {
                if looks < LOOKS {
                    wait(&mut looks);
                    continue;
                }
                let mut notice = lock(&self.notice);
                while self.published.load(Ordering::Acquire) == seen {
                    notice.asleep += 1;
                    notice = self.wake.wait(notice).unwrap_or_else(PoisonError::into_inner);
                    notice.asleep -= 1;
                }
            }
        }
    }
}

/// One look that found nothing.
fn wait(looks: &mut usize) {
    *looks += 1;
    match *looks < SPINS {
        true => std::hint::spin_loop(),
        false => thread::yield_now(),
    }
}

/// A panic elsewhere leaves nothing here half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

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

    #[test]
    fn helpers_that_fell_asleep_help_again() {
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(30));
            let threads = Mutex::new(Vec::new());
            // Both must be there at the same time for this to end, unless another test has the helpers.
            let arrived = AtomicUsize::new(0);
            run(2, 1, &|_| {
                lock(&threads).push(thread::current().id());
                arrived.fetch_add(1, Ordering::SeqCst);
                let start = std::time::Instant::now();
                while arrived.load(Ordering::SeqCst) < 2 && start.elapsed().as_millis() < 200 {
                    thread::yield_now();
                }
            });
            assert_eq!(lock(&threads).len(), 2);
        }
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
