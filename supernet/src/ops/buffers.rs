//! Large work buffers, reused from step to step: the steady state allocates nothing and touches no fresh page.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Returned buffers, any length. A training step holds a few dozen at most, so a linear search is fine.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Buffers kept at most; older ones are freed.
const KEPT: usize = 256;

/// A work buffer; goes back to the pool when dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// A buffer of `len` floats with arbitrary (but initialised) content.
    pub(crate) fn uninitialised(len: usize) -> Self {
        let mut vector = match FREE.lock() {
            Ok(mut free) => {
                let best = (0..free.len())
                    .filter(|&i| free[i].capacity() >= len && free[i].capacity() <= 2 * len.max(1024))
                    .min_by_key(|&i| free[i].capacity());
                best.map(|i| free.swap_remove(i)).unwrap_or_default()
            }
            Err(_) => Vec::new(),
        };
        vector.resize(len, 0.0);
        Buffer(vector)
    }

    /// A buffer of zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::uninitialised(len);
        buffer.fill(0.0);
        buffer
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
