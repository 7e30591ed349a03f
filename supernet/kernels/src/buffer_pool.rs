//! Cache-line-aligned memory, and the pool that keeps it for the next step.

use super::sync::{Mutex, lock};
use std::ops::{Deref, DerefMut};

/// A cache line. A vector that straddles two lines takes twice as long to load, and the allocator aligns to 16 bytes
/// only.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of floats that starts at a cache line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Aligned { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// Sets the length to `len`; contents are arbitrary but initialised. Lines beyond the length stay, so that growing
    /// again writes nothing.
    fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; 16]));
        }
        self.len = len;
    }

    /// Number of floats that fit without allocating.
    fn capacity(&self) -> usize {
        16 * self.lines.capacity()
    }

    fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }
}

impl FromIterator<f32> for Aligned {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        let values: Vec<f32> = values.into_iter().collect();
        let mut aligned = Aligned::zeros(values.len());
        aligned.copy_from_slice(&values);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len.div_ceil(16)` lines (`zeros`, `resize`) of 16 initialised floats without
        // padding, so `len` contiguous floats start at its first line; they are borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `lines` holds at least `len.div_ceil(16)` lines (`zeros`, `resize`) of 16 initialised floats without
        // padding, so `len` contiguous floats start at its first line; `self` stays mutably borrowed for as long as
        // they are.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Largest number of free buffers, whatever their size: the search for one is linear.
const KEPT: usize = 256;

/// Floats of half the largest buffer that serves any request: windows of a network's layers differ in size, and each
/// would stay allocated.
const SMALL: usize = 32 << 10;

/// Bytes of free buffers that are always allowed.
const KEPT_BYTES: usize = 16 << 20;

/// Free buffers, kept for reuse.
///
/// A step needs the buffers of the step before it. So the pool keeps no more bytes than were in use at one time (or
/// [`KEPT_BYTES`]): enough for the next step, without buffers of a large network whose sizes nothing asks for any more.
/// The buffer returned longest ago is freed first.
pub(super) struct BufferPool(Mutex<Kept>);

struct Kept {
    /// Returned buffers, the oldest first.
    free: Vec<Aligned>,
    free_bytes: usize,
    used_bytes: usize,
    /// The largest `used_bytes` so far.
    peak_bytes: usize,
}

impl BufferPool {
    const EMPTY: Kept = Kept { free: Vec::new(), free_bytes: 0, used_bytes: 0, peak_bytes: 0 };

    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        BufferPool(Mutex::new(Self::EMPTY))
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        BufferPool(Mutex::new(Self::EMPTY))
    }

    /// Memory of `len` floats with arbitrary (but initialised) contents.
    pub(super) fn take(&self, len: usize) -> Aligned {
        let mut kept = lock(&self.0);
        let fits = |floats: &Aligned| floats.capacity() >= len && floats.capacity() <= 2 * len.max(SMALL);
        // The last returned of the smallest: most of it may still be in a cache.
        let best = (0..kept.free.len()).rev().filter(|&i| fits(&kept.free[i])).min_by_key(|&i| kept.free[i].capacity());
        let found = best.map(|index| kept.free.remove(index));
        kept.free_bytes -= found.as_ref().map_or(0, Aligned::bytes);
        // Clearing fresh memory takes long, so the lock is not held meanwhile.
        drop(kept);
        let mut floats = found.unwrap_or_default();
        floats.resize(len);
        let mut kept = lock(&self.0);
        kept.used_bytes += floats.bytes();
        kept.peak_bytes = kept.peak_bytes.max(kept.used_bytes);
        floats
    }

    /// Returns a buffer of [`take`](Self::take) to the pool.
    pub(super) fn put(&self, floats: Aligned) {
        let bytes = floats.bytes();
        if bytes == 0 {
            return;
        }
        let mut kept = lock(&self.0);
        kept.used_bytes -= bytes;
        kept.free_bytes += bytes;
        kept.free.push(floats);
        let most = kept.peak_bytes.max(KEPT_BYTES);
        let (mut evicted, mut left) = (0, kept.free_bytes);
        while left > most || kept.free.len() - evicted > KEPT {
            left -= kept.free[evicted].bytes();
            evicted += 1;
        }
        kept.free_bytes = left;
        let evicted: Vec<Aligned> = kept.free.drain(..evicted).collect();
        // Returning memory to the system takes long, so the lock is not held meanwhile.
        drop(kept);
        drop(evicted);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Lengths of the free buffers, oldest first.
    fn kept(pool: &BufferPool) -> Vec<usize> {
        lock(&pool.0).free.iter().map(|floats| floats.len()).collect()
    }

    #[test]
    fn no_more_is_kept_than_was_in_use_at_one_time_and_the_oldest_goes() {
        let pool = BufferPool::new();
        let mib = (1 << 20) / 4;
        // 40 MiB at one time.
        let both = [pool.take(10 * mib), pool.take(30 * mib)];
        both.into_iter().for_each(|floats| pool.put(floats));
        assert_eq!(kept(&pool), [10 * mib, 30 * mib]);
        // 4 MiB do not fit into a free buffer (both are too large). Keeping the new one exceeds the peak by 4 MiB, so
        // the oldest goes, although it is neither the largest nor the smallest.
        let small = pool.take(4 * mib);
        pool.put(small);
        assert_eq!(kept(&pool), [30 * mib, 4 * mib]);
        // A buffer that was taken and returned counts as the newest.
        let large = pool.take(30 * mib);
        pool.put(large);
        assert_eq!(kept(&pool), [4 * mib, 30 * mib]);
        pool.put(pool.take(12 * mib));
        assert_eq!(kept(&pool), [12 * mib]);
    }

    #[test]
    fn small_buffers_are_bounded_in_number() {
        let pool = BufferPool::new();
        let many: Vec<_> = (0..KEPT + 10).map(|i| pool.take(16 * i)).collect();
        many.into_iter().for_each(|floats| pool.put(floats));
        assert_eq!(kept(&pool), (10..KEPT + 10).map(|i| 16 * i).collect::<Vec<_>>());
    }

    #[test]
    fn the_smallest_that_fits_is_reused_and_a_far_larger_one_is_not() {
        let pool = BufferPool::new();
        let [a, b, c] = [3000, 2000, 90_000].map(|len| pool.take(len));
        let wanted = b.as_ptr();
        [a, b, c].into_iter().for_each(|floats| pool.put(floats));
        let taken = pool.take(1900);
        assert_eq!((taken.as_ptr(), taken.len()), (wanted, 1900));
        assert_eq!(kept(&pool), [3000, 90_000]);
        assert_eq!(pool.take(20_000).len(), 20_000);
        assert_eq!(kept(&pool), [3000, 90_000]);
    }
}
