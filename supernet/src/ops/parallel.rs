//! Work split into contiguous ranges. The split depends only on the thread count, and results come back in range order, so that the
//! same number of threads gives the same bits.

use super::workers;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

thread_local! {
    static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Threads among which this one shares its work.
pub(crate) fn threads() -> usize {
    THREADS.get().unwrap_or_else(rayon::current_num_threads)
}

/// Runs `work` as if there were so many threads: one, for a thread that has work of its own while others have theirs.
pub(crate) fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    struct Before(Option<usize>);
    impl Drop for Before {
        fn drop(&mut self) {
            THREADS.set(self.0);
        }
    }
    let _before = Before(THREADS.replace(Some(threads)));
    work()
}

/// Splits `0..total` into ranges of whole multiples of `grain` (but the last), at most one a thread: each sums for itself what is added up afterwards.
pub(crate) fn ranges(total: usize, grain: usize) -> Vec<Range<usize>> {
    let units = total.div_ceil(grain);
    let parts = threads().min(units).max(1);
    (0..parts)
        .map(|part| (units * part / parts * grain).min(total)..(units * (part + 1) / parts * grain).min(total))
        .collect()
}

/// Runs `work` on each range of `0..total` in parallel; results in range order.
pub(crate) fn map<R: Send + Sync>(total: usize, grain: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    let mut ranges = ranges(total, grain);
    if ranges.len() == 1 {
        return vec![work(ranges.remove(0))];
    }
    let results: Vec<_> = ranges.iter().map(|_| OnceLock::new()).collect();
    each(ranges.len(), |index| {
        let first_time = results[index].set(work(ranges[index].clone())).is_ok();
        debug_assert!(first_time);
    });
    results.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// Runs `work` on each range of `0..total` in parallel, with the range's part of `output`, which has `size` values for each of `0..total`; results in
/// range order.
pub(crate) fn map_parts<R: Send + Sync>(
    output: &mut [f32],
    size: usize,
    total: usize,
    grain: usize,
    work: impl Fn(Range<usize>, &mut [f32]) -> R + Sync,
) -> Vec<R> {
    assert!(output.len() >= total * size, "{total} parts of {size} do not fit into an output of {}", output.len());
    let shared = Shared::new(output);
    map(total, grain, |range| {
        // SAFETY: `map` gives each range to one call, and its ranges are disjoint, so that the parts of `output` are; `output` is borrowed meanwhile.
        let part = unsafe { shared.slice(range.start * size..range.end * size) };
        work(range, part)
    })
}

/// Runs `work` on each index below `count` in parallel, each free to go to whichever thread has time.
pub(crate) fn each(count: usize, work: impl Fn(usize) + Sync) {
    let threads = threads();
    // Those that help are of no pool, and would not know how many they are.
    workers::run(count, threads - 1, &|index| with_threads(threads, || work(index)));
}

/// Runs `work` on each index below `count`, up to `at_once` of them at a time, each on a thread of its own; a thread that has none left takes part in
/// the kernels of the others. `take` gets the results in the order of the indices, one after the other, on whichever thread is there.
pub(crate) fn in_turn<R: Send>(
    count: usize,
    at_once: usize,
    work: impl Fn(usize) -> R + Sync,
    mut take: impl FnMut(R) + Send,
) {
    let threads = threads();
    let at_once = at_once.min(threads).min(count);
    if at_once <= 1 {
        (0..count).for_each(|index| take(work(index)));
        return;
    }
    let next = AtomicUsize::new(0);
    // Results that wait for those before them.
    let results = Mutex::new((take, 0, BTreeMap::new()));
    let one_after_another = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = work(index);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            let (take, taken, waiting) = &mut *results;
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(taken) {
                take(result);
                *taken += 1;
            }
        }
    };
    workers::run_long(at_once, at_once - 1, threads - 1, &|_| with_threads(threads, one_after_another));
}

/// A pointer to an output that threads write at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32, usize);

// SAFETY: only `slice` hands out memory, whose contract is that ranges in use at one time are disjoint.
unsafe impl Send for Shared {}
// SAFETY: `&Shared` gives no access but through `slice`, whose contract is that ranges in use at one time are disjoint.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares `output` for as long as it is mutably borrowed by the caller's scope.
    pub(crate) fn new(output: &mut [f32]) -> Self {
        Shared(output.as_mut_ptr(), output.len())
    }

    /// The part `range`.
    ///
    /// # Safety
    /// No other thread may use an overlapping range at the same time, and the shared slice must still be borrowed.
    /// The range itself is checked.
    #[allow(clippy::mut_from_ref)] // disjointness is the caller's contract
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.1, "range {range:?} outside an output of {}", self.1);
        // SAFETY: `range` lies inside the slice that this was made of, checked above, which is still borrowed; by the contract no other thread uses an
        // overlapping range, so that this is the only reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_thread_means_one_range_until_it_is_over() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let ranges = || super::map(30, 1, |range| range.len()).len();
            let one = |work: &dyn Fn() -> usize| super::with_threads(1, work);
            assert_eq!((ranges(), one(&ranges), ranges()), (3, 1, 3));
            assert_eq!(super::with_threads(1, || (super::with_threads(2, ranges), ranges())), (2, 1));
        });
    }

    #[test]
    fn results_are_taken_in_order_with_as_many_threads_inside_as_outside() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for at_once in [1, 2, 3, 9] {
            let mut taken = Vec::new();
            let work = |index: usize| {
                // Later ones are done earlier.
                std::thread::sleep(std::time::Duration::from_millis(8 - 2 * index as u64));
                let sums = super::map(100, 1, |range| range.sum::<usize>());
                (index, sums.len(), sums.iter().sum::<usize>())
            };
            pool.install(|| super::in_turn(4, at_once, work, |result| taken.push(result)));
            assert_eq!(taken, [0, 1, 2, 3].map(|index| (index, 3, 4950)));
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        for total in [0, 1, 2, 7, 64, 65] {
            for grain in [1, 3, 64] {
                let ranges = super::ranges(total, grain);
                assert_eq!(ranges.first().unwrap().start, 0);
                assert_eq!(ranges.last().unwrap().end, total);
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start && w[0].end % grain == 0));
            }
        }
    }
}
