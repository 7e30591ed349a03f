//! An image in memory.

use std::borrow::Cow;

/// One image: RGB u8 `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Image<'a> {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes, borrowed from the cache if they are there.
    pub pixels: Cow<'a, [u8]>,
}
