//! Products over pixels, and where their rows come from.

use super::affine::{Affine, Channels};
use super::ends::Target;
use super::product::{Packed, widen};
use crate::Activation;
use crate::buffers::Buffer;
use crate::inference::padded::Layout;
use crate::matmul::ROW_BLOCK;
use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, vectors};
use bytemuck::cast_slice_mut;
use std::ops::Range;

/// Bytes of the rows that are widened at a time, which stay in L1 beside a panel of the weight. Where rows are long, it
/// is eight rows, however many bytes these have.
const WIDENED: usize = 16 << 10;

/// Rows of bytes.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// As they lie in memory.
    Plain(&'a [u8]),
    /// Multiplied by a factor per image and channel, and rounded anew.
    Gated {
        input: &'a [u8],
        from: Affine,
        /// `[images, channels]`
        gate: &'a [f32],
        to: Affine,
        /// Pixels per image.
        pixels: usize,
    },
}

impl Rows<'_> {
    /// Writes `rows` rows of `k` values of words from `first` on to `tile`, rows `stride` bytes apart; values between
    /// rows are arbitrary.
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, first: usize, rows: usize, k: usize, tile: &mut [u8], stride: usize) {
        match *self {
            // Widened rows that follow each other without a gap are copied in one go, since rows may be short.
            Rows::Plain(input) if S::WORD_VALUES == 2 && stride == 2 * k => {
                copy_values(s, &input[first * k..][..rows * k], tile);
            }
            Rows::Plain(input) => {
                for (row, out) in tile.chunks_exact_mut(stride).take(rows).enumerate() {
                    copy_values(s, &input[(first + row) * k..][..k], out);
                }
            }
            Rows::Gated { input, from, gate, to, pixels } => {
                let (rounding, scale) = (to.rounding(s), s.splat(from.scale));
                for channels in vectors(s, k) {
                    let zero_point = s.splat_i32(-i32::from(from.zero_point));
                    let mut row = 0;
                    while row < rows {
                        let image = (first + row) / pixels;
                        let end = rows.min((image + 1) * pixels - first);
                        let factors = s.mul(scale, s.read(&gate[image * k..][channels.clone()]));
                        for row in row..end {
                            let bytes = s.read_bytes(&input[(first + row) * k..][channels.clone()]);
                            let value = s.mul(s.to_floats(s.add_i32(bytes, zero_point)), factors);
                            let size = 4 / S::WORD_VALUES;
                            let out = &mut tile[row * stride..][channels.start * size..channels.end * size];
                            s.write_values(out, rounding.bytes(value));
                        }
                        row = end;
                    }
                }
            }
        }
    }
}

/// Copies bytes as values of words to the beginning of `out`.
#[inline(always)]
fn copy_values<S: Simd>(_: S, bytes: &[u8], out: &mut [u8]) {
    if S::WORD_VALUES == 4 {
        return out[..bytes.len()].copy_from_slice(bytes);
    }
    // Rows begin at whole words.
    widen(cast_slice_mut(out), bytes);
}

/// Rows of a source as a product reads them: `k` values each, `stride` bytes apart.
struct Fill<'a, 'b> {
    source: Rows<'a>,
    first: usize,
    rows: usize,
    k: usize,
    tile: &'b mut [u8],
    stride: usize,
}

impl Kernel for Fill<'_, '_> {
    type Output = ();
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fill { source, first, rows, k, tile, stride } = self;
        source.fill(s, first, rows, k, tile, stride);
    }
}

/// `target = activation(rows x weight + residual)` for the rows `range`.
pub(super) struct ProductRows<'a, 'o> {
    pub weight: &'a Packed,
    pub channels: &'a Channels,
    pub rows: Rows<'a>,
    pub range: Range<usize>,
    /// The residual of the range, laid out as the target.
    pub residual: Option<(&'a [u8], Affine)>,
    /// Output of the range.
    pub target: Target<'o>,
    pub activation: Activation,
}

impl ProductRows<'_, '_> {
    /// Computes the rows.
    pub(super) fn run(mut self) {
        let Packed { k, n, groups, .. } = *self.weight;
        let values = InstructionSet::active().word_values();
        let in_place = matches!(self.rows, Rows::Plain(_)) && values == 4 && k.is_multiple_of(4);
        // Bytes of a row of words.
        let stride = 4 * groups;
        // Rows are widened by fours, as many as a tile has.
        let most = if values == 4 { ROW_BLOCK } else { (WIDENED / stride / 4 * 4).clamp(8, ROW_BLOCK) };
        let words = if in_place { 0 } else { most.min(self.range.len()) * groups };
        let mut tile = Buffer::with_arbitrary_contents(words);
        let tile = cast_slice_mut::<f32, u8>(&mut tile);
        for first in self.range.clone().step_by(most) {
            let rows = most.min(self.range.end - first);
            let x = match self.rows {
                Rows::Plain(input) if in_place => &input[first * k..][..rows * k],
                source => {
                    dispatch(Fill { source, first, rows, k, tile, stride });
                    &*tile
                }
            };
            for panel in self.weight.panels() {
                let start = (first - self.range.start) * n + panel.column;
                let residual = self.residual.map(|(bytes, from)| (&bytes[start..], from));
                let end = panel.end(n, self.channels, self.target.from(start), residual, self.activation);
                panel.multiply(x, Layout::plain(values * groups), rows, self.channels.bias(), end);
            }
        }
    }
}
