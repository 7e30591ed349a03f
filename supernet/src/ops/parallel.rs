//! Work split into contiguous ranges. The split depends only on the number of threads, and results come back in range
//! order, so that the same number of threads gives the same bits.

use super::ordered::Ordered;
use super::workers;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

thread_local! {
    static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Number of threads among which this thread shares its work.
pub(crate) fn threads() -> usize {
    THREADS.get().unwrap_or_else(rayon::current_num_threads)
}

/// Runs `work` as if there were `threads` threads: 1 for a thread with work of its own while others have theirs.
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

/// Splits `0..total` into at most one range per thread, each (except the last) a whole multiple of `grain`. Each range
/// is summed separately and the sums are added afterwards, so the split decides the rounding.
pub(crate) fn ranges(total: usize, grain: usize) -> Vec<Range<usize>> {
    let units = total.div_ceil(grain);
    let parts = threads().min(units).max(1);
    (0..parts)
        .map(|part| (units * part / parts * grain).min(total)..(units * (part + 1) / parts * grain).min(total))
        .collect()
}

/// Runs `work` on each range of `0..total` in parallel and returns the results in range order.
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

/// Runs `work` on each range of `0..total` in parallel, with the range's part of `output` (`size` values per index),
/// and returns the results in range order.
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
        // SAFETY: `map` passes each of its ranges to one call, and they are disjoint, hence so are the parts of
        // `output`; `output` stays mutably borrowed until `map` returns.
        let part = unsafe { shared.slice(range.start * size..range.end * size) };
        work(range, part)
    })
}

/// Runs `work` on each index below `count` in parallel; an idle thread takes the next index.
pub(crate) fn each(count: usize, work: impl Fn(usize) + Sync) {
    let threads = threads();
    // Helpers belong to no rayon pool, so the number of threads is handed to them.
    workers::run(count, threads - 1, &|index| with_threads(threads, || work(index)));
}

/// Runs `work` on each index below `count`, at most `at_once` at a time, each on a thread of its own; threads without
/// an index help in the kernels of the others. `take` receives the results one by one in index order, on the thread
/// that completed the sequence.
pub(crate) fn map_ordered<R: Send>(
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
    let ordered = Ordered::new(count, take);
    let one_after_another = || ordered.share(&work);
    workers::run_long(at_once, at_once - 1, threads - 1, &|_| with_threads(threads, one_after_another));
}

/// A pointer to an output, of which threads write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32, usize);

// SAFETY: `slice` is the only access to the memory, and its contract is that ranges in use at one time are disjoint.
unsafe impl Send for Shared {}
// SAFETY: `slice` is the only access through `&Shared`, and its contract is that ranges in use at one time are
// disjoint.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares `output`; the caller keeps it mutably borrowed while parts are in use.
    pub(crate) fn new(output: &mut [f32]) -> Self {
        Shared(output.as_mut_ptr(), output.len())
    }

    /// The part `range` of the output.
    ///
    /// # Safety
    /// No other reference to an overlapping range may exist at the same time, and the shared slice must still be
    /// borrowed. Bounds are checked here.
    #[allow(clippy::mut_from_ref)] // disjointness is part of the contract above
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.1, "range {range:?} outside an output of {}", self.1);
        // SAFETY: `range` lies inside the slice (asserted above), which is still borrowed by the contract; by the
        // contract no overlapping range is in use, so this is the only reference to it.
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
                // Later indices finish earlier.
                std::thread::sleep(std::time::Duration::from_millis(8 - 2 * index as u64));
                let sums = super::map(100, 1, |range| range.sum::<usize>());
                (index, sums.len(), sums.iter().sum::<usize>())
            };
            pool.install(|| super::map_ordered(4, at_once, work, |result| taken.push(result)));
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
