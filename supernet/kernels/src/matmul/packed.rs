//! The right matrix of a product, packed in panels of one to three vectors of columns.

use crate::buffers::Aligned;
use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points};

/// A `[k, n]` matrix in panels for the active instruction set; columns beyond `n` are zero.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(super) data: Aligned,
    pub(super) k: usize,
    pub(super) n: usize,
}

/// Number of vectors of the next panel, of `vectors` in all: three, but two and two rather than three and one.
pub(super) fn panel_vectors(vectors: usize, done: usize) -> usize {
    match vectors - done {
        1 => 1,
        2 | 4 => 2,
        _ => 3,
    }
}

impl Packed {
    /// Packs the matrix whose element `(row, column)` is `source[row * row_stride + column * column_stride]`.
    pub(crate) fn new(source: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Self {
        Self::widened(source, k, n, n, row_stride, column_stride)
    }

    /// Packs a matrix of `existing` columns, padded with zero columns to `n`.
    pub(crate) fn widened(
        source: &[f32],
        k: usize,
        existing: usize,
        n: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let mut packed = Packed::zeros(k, n);
        packed.panels(existing).into_iter().for_each(|panel| panel.fill(source, row_stride, column_stride));
        packed
    }

    /// A matrix of zeros.
    pub(crate) fn zeros(k: usize, n: usize) -> Self {
        let lanes = InstructionSet::active().lanes();
        Packed { data: Aligned::zeros(n.next_multiple_of(lanes) * k), k, n }
    }

    /// The panels of the matrix, of which `existing` columns will be filled.
    pub(crate) fn panels(&mut self, existing: usize) -> Vec<Panel<'_>> {
        let lanes = InstructionSet::active().lanes();
        let vectors = self.n.div_ceil(lanes);
        let (mut done, mut rest) = (0, &mut self.data[..]);
        let mut panels = Vec::new();
        while done < vectors {
            let nr = panel_vectors(vectors, done);
            let (start, width) = (done * lanes, nr * lanes);
            let (values, others) = rest.split_at_mut(self.k * width);
            panels.push(Panel { values, width, start, columns: width.min(existing.saturating_sub(start)) });
            rest = others;
            done += nr;
        }
        panels
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.k
    }
}

/// A panel to be filled.
pub(crate) struct Panel<'a> {
    /// `[k, width]`
    values: &'a mut [f32],
    width: usize,
    /// First column of the matrix.
    start: usize,
    /// Columns that exist.
    columns: usize,
}

impl Panel<'_> {
    /// Fills the panel from the matrix whose element `(row, column)` is `source[row * row_stride + column *
    /// column_stride]`.
    pub(crate) fn fill(self, source: &[f32], row_stride: usize, column_stride: usize) {
        let Panel { values: panel, width, start, columns } = self;
        if columns > 0 && !panel.is_empty() {
            let source = &source[start * column_stride..];
            assert!(source.len() > (panel.len() / width - 1) * row_stride + (columns - 1) * column_stride);
            dispatch(PackPanel { source, row_stride, column_stride, columns, panel, width });
        }
    }
}

/// Fills the first `columns` columns of a panel of rows of `width` floats, for all rows of the source.
struct PackPanel<'a> {
    source: &'a [f32],
    row_stride: usize,
    column_stride: usize,
    columns: usize,
    panel: &'a mut [f32],
    width: usize,
}

impl Kernel for PackPanel<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackPanel { source, row_stride, column_stride, columns, panel, width } = self;
        let rows = panel.len() / width;
        if column_stride == 1 {
            for (row, panel_row) in panel.chunks_exact_mut(width).enumerate() {
                panel_row[..columns].copy_from_slice(&source[row * row_stride..][..columns]);
            }
            return;
        }
        // Whole blocks of 8 x 8 if each column is contiguous; the remaining values one by one.
        let whole = if row_stride == 1 { (rows / 8 * 8, columns / 8 * 8) } else { (0, 0) };
        for column in (0..whole.1).step_by(8) {
            for row in (0..whole.0).step_by(8) {
                let block = &source[column * column_stride + row..];
                s.transpose(block, column_stride, &mut panel[row * width + column..], width);
            }
        }
        for (row, panel_row) in panel.chunks_exact_mut(width).enumerate() {
            let first = if row < whole.0 { whole.1 } else { 0 };
            for (column, value) in panel_row[..columns].iter_mut().enumerate().skip(first) {
                *value = source[row * row_stride + column * column_stride];
            }
        }
    }
}
