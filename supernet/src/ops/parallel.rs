//! Work split into contiguous ranges. The split depends only on the thread count, and results come back in range order, so that the
//! same number of threads gives the same bits.

use super::workers;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with no [`map`] in it sharing its work out: for a thread that has work of its own while others have theirs.
pub(crate) fn alone<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// Ranges that few threads share: when the system takes one's core for a moment the others have not to wait for all of its part. Not more for more
/// threads, since what each range sums is added up by one of them.
const RANGES: usize = 8;

/// Splits `0..total` into ranges of whole multiples of `grain` (but the last): at most one a thread, or three if that makes no more than [`RANGES`].
pub(crate) fn ranges(total: usize, grain: usize) -> Vec<Range<usize>> {
    let units = total.div_ceil(grain);
    let threads = if ALONE.get() { 1 } else { rayon::current_num_threads() };
    let parts = if threads == 1 { 1 } else { (3 * threads).min(RANGES.max(threads)) };
    let parts = parts.min(units).max(1);
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

/// Runs `work` on each index below `count` in parallel, each free to go to whichever thread has time.
pub(crate) fn each(count: usize, work: impl Fn(usize) + Sync) {
    let threads = if ALONE.get() { 1 } else { rayon::current_num_threads() };
    workers::run(count, threads - 1, &work);
}

/// A pointer to an output that threads write at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32, usize);

// SAFETY: only `slice` hands out memory, whose contract is that ranges in use at one time are disjoint.
unsafe impl Send for Shared {}
// SAFETY: as above.
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
        // SAFETY: inside the slice (checked above), disjoint by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn alone_means_one_range_until_it_is_over() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let ranges = || super::map(30, 1, |range| range.len()).len();
            assert_eq!((ranges(), super::alone(ranges), ranges()), (8, 1, 8));
            assert_eq!(super::alone(|| (super::alone(ranges), ranges())), (1, 1));
        });
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
