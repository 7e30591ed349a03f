//! Work split into contiguous ranges. The split depends only on the number of threads, and results come back in range
//! order, so that the same number of threads gives the same bits.

use super::buffers::{Unwritten, assume_written};
use super::ordered::Ordered;
use super::sync::{Mutex, lock};
use super::workers;
use std::cell::Cell;
use std::ops::Range;
use std::sync::PoisonError;

thread_local! {
    static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Number of threads among which this thread shares the work of its kernels.
pub fn threads() -> usize {
    THREADS.get().unwrap_or_else(rayon::current_num_threads)
}

/// Runs `work` on this thread, with kernels that share their work among `threads` threads (at least 1), whatever rayon
/// pool the caller is in.
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    struct Before(Option<usize>);
    impl Drop for Before {
        fn drop(&mut self) {
            THREADS.set(self.0);
        }
    }
    let _before = Before(THREADS.replace(Some(threads.max(1))));
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
pub(crate) fn map<R: Send>(total: usize, grain: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    map_items(ranges(total, grain), work)
}

/// Runs `work` on each range of `0..total` in parallel, with the range's part of `output` (`size` values per index),
/// and returns the results in range order.
pub(crate) fn map_parts<T: Send, R: Send>(
    output: &mut [T],
    size: usize,
    total: usize,
    grain: usize,
    work: impl Fn(Range<usize>, &mut [T]) -> R + Sync,
) -> Vec<R> {
    map_outputs([(output, size)], total, grain, |range, [output]| work(range, output))
}

/// Runs `work` on each range of `0..total` in parallel, with the range's part of each output, and returns the results
/// in range order. An output is given with its number of values per index; the last index may have fewer.
pub(crate) fn map_outputs<const N: usize, T: Send, R: Send>(
    outputs: [(&mut [T], usize); N],
    total: usize,
    grain: usize,
    work: impl Fn(Range<usize>, [&mut [T]; N]) -> R + Sync,
) -> Vec<R> {
    for (output, size) in &outputs {
        let before_last = total.saturating_sub(1) * size;
        assert!(
            total * size == 0 || output.len() > before_last,
            "{total} parts of {size} do not fit into an output of {}",
            output.len()
        );
    }
    let mut rest = outputs;
    let items = ranges(total, grain).into_iter().map(|range| {
        let parts = rest.each_mut().map(|(rest, size)| {
            let len = (range.len() * *size).min(rest.len());
            let (part, others) = std::mem::take(rest).split_at_mut(len);
            *rest = others;
            part
        });
        (range, parts)
    });
    map_items(items.collect(), |(range, parts)| work(range, parts))
}

/// Runs `work` on each range of `0..total` in parallel, with the range's part of `memory` (`size` values per index; the
/// last index may have fewer), which `work` returns written. Returns the whole of it, and the results in range order.
pub(crate) fn write_parts<R: Send>(
    memory: &mut Unwritten,
    size: usize,
    total: usize,
    grain: usize,
    work: impl for<'b> Fn(Range<usize>, &'b mut Unwritten) -> (&'b mut [f32], R) + Sync,
) -> (&mut [f32], Vec<R>) {
    let len = memory.len();
    let part = |range: Range<usize>| ((range.end * size).min(len) - (range.start * size).min(len), range);
    write_items(memory, ranges(total, grain).into_iter().map(part).collect(), work)
}

/// Runs `work` on each item in parallel, with the item's part of `memory`, which `work` returns written. Items are
/// given with the length of their parts. Returns the whole memory, and the results in the items' order.
pub(crate) fn write_items<T: Send, R: Send>(
    memory: &mut Unwritten,
    items: Vec<(usize, T)>,
    work: impl for<'b> Fn(T, &'b mut Unwritten) -> (&'b mut [f32], R) + Sync,
) -> (&mut [f32], Vec<R>) {
    let mut rest = &mut *memory;
    let mut parts = Vec::with_capacity(items.len());
    for (len, item) in items {
        let (part, others) = rest.split_at_mut(len);
        parts.push((item, part));
        rest = others;
    }
    assert!(rest.is_empty(), "{} values belong to no item", rest.len());
    let results = map_items(parts, |(item, part)| {
        let place = (part.as_ptr().cast(), part.len());
        let (floats, result) = work(item, part);
        assert!((floats.as_ptr(), floats.len()) == place, "other memory was written");
        result
    });
    // SAFETY: the parts cover the memory, and `work` returned each of them as floats.
    (unsafe { assume_written(memory) }, results)
}

/// Runs `work` on each item in parallel and returns the results in the items' order; an idle thread takes the next
/// item.
pub(crate) fn map_items<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    if items.len() == 1 {
        return items.into_iter().map(work).collect();
    }
    let slots: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    each(slots.len(), |index| {
        let item = lock(&slots[index]).0.take();
        let result = item.map(&work);
        lock(&slots[index]).1 = result;
    });
    slots.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
}

/// Runs `work` on each item in parallel, with kernels that stay on the item's thread, and returns the results in the
/// items' order.
pub fn map_alone<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    map_items(items, |item| with_threads(1, || work(item)))
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
pub fn map_ordered<R: Send>(
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
    fn each_range_has_its_part_of_every_output_and_the_last_index_may_have_fewer_values() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            // Two values per index and three per index, of which the last has one.
            let (mut a, mut b) = ([0.0; 14], [0.0; 19]);
            let lengths = super::map_outputs([(&mut a, 2), (&mut b, 3)], 7, 2, |range, [a, b]| {
                a.fill(range.start as f32);
                b.fill(range.end as f32);
                (a.len(), b.len())
            });
            assert_eq!(lengths, [(4, 6), (4, 6), (6, 7)]);
            assert_eq!((a[3], a[4], a[8], b[5], b[6], b[18]), (0.0, 2.0, 4.0, 2.0, 4.0, 7.0));
        });
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn an_output_without_a_part_for_the_last_index_is_refused() {
        super::map_parts(&mut [0.0; 6], 2, 4, 1, |_, _| ());
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
