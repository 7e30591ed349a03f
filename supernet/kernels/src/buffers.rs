//! Memory for kernels: tensors that a kernel writes, and work buffers reused from step to step, so that the steady
//! state allocates few buffers and touches no fresh page.

use super::buffer_pool::BufferPool;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

pub(crate) use super::buffer_pool::Aligned;

/// Floats that may not be written yet: zeroing a tensor would be an extra pass over memory. A kernel takes its output
/// so and returns it as floats.
pub(crate) type Unwritten = [MaybeUninit<f32>];

/// The memory as the floats that it holds.
///
/// # Safety
/// All of them must be written.
pub(crate) unsafe fn assume_written(memory: &mut Unwritten) -> &mut [f32] {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`; every float is initialised by the contract, and borrowed for
    // as long as `memory`.
    unsafe { &mut *(memory as *mut Unwritten as *mut [f32]) }
}

/// A vector of `len` floats that `write` writes, with the result of `write`.
pub(crate) fn written<R>(
    len: usize,
    write: impl for<'a> FnOnce(&'a mut Unwritten) -> (&'a mut [f32], R),
) -> (Vec<f32>, R) {
    let mut values = Vec::with_capacity(len);
    let memory = &mut values.spare_capacity_mut()[..len];
    let start = memory.as_ptr().cast();
    let (floats, result) = write(memory);
    assert!(floats.as_ptr() == start && floats.len() == len, "other memory was written");
    // SAFETY: the capacity is at least `len`; `write` returned the memory as floats, so they are initialised.
    unsafe { values.set_len(len) };
    (values, result)
}

static POOL: BufferPool = BufferPool::new();

/// A work buffer that returns to the pool when dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Aligned);

impl Buffer {
    /// A buffer of `len` floats with arbitrary but initialised contents.
    pub(crate) fn with_arbitrary_contents(len: usize) -> Self {
        Buffer(POOL.take(len))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        POOL.put(std::mem::take(&mut self.0));
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
    fn a_written_vector_is_what_was_written() {
        let (values, result) = written(5, |memory| {
            for (value, i) in memory.iter_mut().zip(0..) {
                value.write(i as f32);
            }
            // SAFETY: the loop wrote every float.
            (unsafe { assume_written(memory) }, "done")
        });
        assert_eq!((&values[..], result), (&[0.0, 1.0, 2.0, 3.0, 4.0][..], "done"));
    }

    #[test]
    #[should_panic(expected = "other memory")]
    fn a_vector_of_which_a_part_was_written_is_refused() {
        written(5, |memory| {
            let part = &mut memory[..4];
            part.fill(MaybeUninit::new(1.0));
            // SAFETY: every float of the part was written.
            (unsafe { assume_written(part) }, ())
        });
    }

    #[test]
    fn memory_begins_with_a_cache_line_and_holds_what_it_says() {
        for len in [0, 1, 15, 16, 17, 1000, 100_000] {
            let mut floats = Aligned::zeros(len);
            assert_eq!((floats.len(), floats.as_ptr() as usize % 64), (len, 0));
            floats.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let copy = floats.clone();
            assert!(copy.iter().enumerate().all(|(i, &v)| v == i as f32));
            let buffer = Buffer::with_arbitrary_contents(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
        }
    }
}
