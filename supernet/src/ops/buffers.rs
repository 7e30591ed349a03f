//! Memory for kernels: tensors that a kernel writes, and work buffers reused from step to step, so that the steady
//! state allocates few buffers and touches no fresh page.

use super::buffer_pool::BufferPool;
use std::ops::{Deref, DerefMut};

pub(crate) use super::buffer_pool::Aligned;

/// An uninitialised vector of `len` floats, for a tensor.
///
/// # Safety
/// Every float must be written before it is read.
pub(crate) unsafe fn uninit_vec(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    #[allow(clippy::uninit_vec)] // zeroing would be an extra pass over memory
    // SAFETY: the capacity is `len`; the contract says that each float is written before it is read, and floats have no
    // destructor.
    unsafe {
        values.set_len(len)
    };
    values
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
