//! Memory for kernels: aligned, and the large work buffers reused from step to step, so that the steady state allocates nothing and
//! touches no fresh page.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// One cache line. A vector that lies across two of them takes twice as long to load, and the allocator aligns to 16 bytes only.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats that begin with a cache line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// So many zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Aligned { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// Makes it `len` floats long; the content is arbitrary (but initialised). Lines beyond the length stay, so that it can grow again without a write.
    fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; 16]));
        }
        self.len = len;
    }

    /// Floats that it can hold without allocating.
    fn capacity(&self) -> usize {
        16 * self.lines.capacity()
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
        // SAFETY: the lines are that many floats at least, one after the other.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// So many floats for a tensor.
///
/// # Safety
/// All must be written before one of them is read.
pub(crate) unsafe fn unwritten(len: usize) -> Vec<f32> {
    keep_freed_memory();
    let mut values = Vec::with_capacity(len);
    #[allow(clippy::uninit_vec)] // zeros would be a pass over memory for nothing
    // SAFETY: the capacity is there; what the memory holds is left alone by the caller's contract.
    unsafe {
        values.set_len(len)
    };
    values
}

/// Has the allocator keep what is freed for the next step. Tensors of many megabytes come and go with every step; by default glibc gives such memory
/// back to the system, which then clears and maps the same pages again.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: only sets two thresholds (the first is at its largest); refused values change nothing.
            unsafe {
                libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
                libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            }
        });
    }
}

/// Returned buffers, any length. A training step holds a few dozen at most, so a linear search is fine.
static FREE: Mutex<Vec<Aligned>> = Mutex::new(Vec::new());

/// Buffers kept at most; older ones are freed.
const KEPT: usize = 256;

/// A work buffer; goes back to the pool when dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Aligned);

impl Buffer {
    /// A buffer of `len` floats with arbitrary (but initialised) content.
    pub(crate) fn uninitialised(len: usize) -> Self {
        let mut floats = match FREE.lock() {
            Ok(mut free) => {
                let best = (0..free.len())
                    .filter(|&i| free[i].capacity() >= len && free[i].capacity() <= 2 * len.max(1024))
                    .min_by_key(|&i| free[i].capacity());
                best.map(|i| free.swap_remove(i)).unwrap_or_default()
            }
            Err(_) => Aligned::default(),
        };
        floats.resize(len);
        Buffer(floats)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut free) = FREE.lock() {
            if free.len() >= KEPT {
                free.remove(0);
            }
            free.push(std::mem::take(&mut self.0));
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_with_a_cache_line_and_holds_what_it_says() {
        for len in [0, 1, 15, 16, 17, 1000, 100_000] {
            let mut floats = Aligned::zeros(len);
            assert_eq!((floats.len(), floats.as_ptr() as usize % 64), (len, 0));
            floats.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let copy = floats.clone();
            assert!(copy.iter().enumerate().all(|(i, &v)| v == i as f32));
            let buffer = Buffer::uninitialised(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
        }
    }
}
