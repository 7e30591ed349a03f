//! Weight gradients that kernels sum transposed, in the layout of the weight.
//!
//! Each thread sums the gradient of its pixels as `[in, out]`, since vectors hold output channels; the weight is `[out,
//! in]`.

use super::buffers::Aligned;
use super::parallel;
use super::simd::{Kernel, Simd, dispatch, entry_points};
use super::slice::SLICE;
use std::ops::Range;

/// Columns of a tile: those that a transposition of the instruction set takes.
const TILE: usize = 8;

/// Values per thread below which another thread does not pay.
const PART: usize = 1 << 14;

/// Transposed sums of a weight gradient, one for each range of pixels.
pub(crate) struct TransposedParts {
    parts: Vec<Aligned>,
    /// From one slice of output channels to the next.
    slice_step: usize,
    /// From one input channel to the next.
    column_step: usize,
}

impl TransposedParts {
    /// Parts `[columns, stride]`.
    pub(crate) fn in_rows(parts: Vec<Aligned>, stride: usize) -> Self {
        TransposedParts { parts, slice_step: SLICE, column_step: stride }
    }

    /// Parts `[slices, columns, SLICE]`.
    pub(crate) fn in_slices(parts: Vec<Aligned>, columns: usize) -> Self {
        TransposedParts { parts, slice_step: columns * SLICE, column_step: SLICE }
    }

    /// Writes the sum of the parts, added in their order, to `gradient` `[rows, columns]`; each row is multiplied by
    /// its factor, if there are factors.
    pub(crate) fn write(&self, gradient: &mut [f32], columns: usize, factors: Option<&[f32]>) {
        let rows = gradient.len() / columns;
        let grain = SLICE * (PART / (SLICE * columns)).max(1);
        parallel::map_parts(gradient, columns, rows, grain, |rows, gradient| {
            dispatch(WriteRows { sums: self, rows, columns, factors, gradient })
        });
    }
}

/// [`TransposedParts::write`] for some rows, which begin with a slice.
struct WriteRows<'a> {
    sums: &'a TransposedParts,
    rows: Range<usize>,
    columns: usize,
    factors: Option<&'a [f32]>,
    /// `[rows, columns]`
    gradient: &'a mut [f32],
}

impl Kernel for WriteRows<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WriteRows { sums, rows, columns, factors, gradient } = self;
        for (first, out) in rows.clone().step_by(SLICE).zip(gradient.chunks_mut(SLICE * columns)) {
            let width = SLICE.min(rows.end - first);
            let mut scale = [1.0; SLICE];
            if let Some(factors) = factors {
                scale[..width].copy_from_slice(&factors[first..first + width]);
            }
            for column in (0..columns).step_by(TILE) {
                let count = TILE.min(columns - column);
                let mut tile = [0.0; TILE * SLICE];
                let start = first / SLICE * sums.slice_step + column * sums.column_step;
                for (number, part) in sums.parts.iter().enumerate() {
                    let of_columns = part[start..].chunks(sums.column_step).take(count);
                    for (values, tile) in of_columns.zip(tile.chunks_exact_mut(SLICE)) {
                        let tile = tile[..width].iter_mut().zip(values);
                        tile.for_each(|(tile, &value)| *tile = if number == 0 { value } else { *tile + value });
                    }
                }
                for tile in tile.chunks_exact_mut(SLICE) {
                    for (value, scale) in tile.iter_mut().zip(&scale) {
                        *value *= scale;
                    }
                }
                if (count, width) == (TILE, SLICE) {
                    for half in (0..SLICE).step_by(TILE) {
                        s.transpose(&tile[half..], SLICE, &mut out[half * columns + column..], columns);
                    }
                } else {
                    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                        let values = tile[row..].iter().step_by(SLICE);
                        out[column..column + count].iter_mut().zip(values).for_each(|(out, value)| *out = *value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn sums_of_parts_are_written_transposed_in_both_layouts() {
        for (rows, columns, count) in
            [(1usize, 1usize, 1), (16, 8, 2), (48, 24, 2), (17, 13, 3), (40, 7, 1), (250, 130, 2)]
        {
            let (slices, stride) = (rows.div_ceil(SLICE), rows + 3);
            let weights: Vec<Vec<f32>> = (0..count).map(|part| values(rows * columns, part)).collect();
            let part = |weight: &Vec<f32>, len: usize, at: &dyn Fn(usize, usize) -> usize| {
                let mut part = Aligned::zeros(len);
                for (index, &value) in weight.iter().enumerate() {
                    part[at(index / columns, index % columns)] = value;
                }
                part
            };
            let in_rows = |row: usize, column: usize| column * stride + row;
            let in_slices = |row: usize, column: usize| (row / SLICE * columns + column) * SLICE + row % SLICE;
            let factors = values(rows, 9);
            let expected = |factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
                (0..rows * columns)
                    .map(|index| weights.iter().map(|weight| weight[index]).sum::<f32>() * factor(index / columns))
                    .collect()
            };
            let mut gradient = vec![7.0; rows * columns];
            let parts = weights.iter().map(|weight| part(weight, columns * stride, &in_rows)).collect();
            TransposedParts::in_rows(parts, stride).write(&mut gradient, columns, None);
            assert_eq!(gradient, expected(&|_| 1.0), "{rows} x {columns}, {count} parts");
            let parts = weights.iter().map(|weight| part(weight, slices * columns * SLICE, &in_slices)).collect();
            TransposedParts::in_slices(parts, columns).write(&mut gradient, columns, Some(&factors));
            assert_eq!(gradient, expected(&|row| factors[row]), "{rows} x {columns}, {count} parts in slices");
        }
    }
}
