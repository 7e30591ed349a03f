//! Memory of floats used for words.

/// The floats as words of the same bits.
pub(super) fn of(floats: &[f32]) -> &[i32] {
    // SAFETY: `f32` and `i32` have equal size and alignment, and every bit pattern is a value of both; the borrow is
    // that of `floats`.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

/// The floats as words of the same bits.
pub(super) fn of_mut(floats: &mut [f32]) -> &mut [i32] {
    // SAFETY: `f32` and `i32` have equal size and alignment, and every bit pattern is a value of both; the mutable
    // borrow is that of `floats`.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}
