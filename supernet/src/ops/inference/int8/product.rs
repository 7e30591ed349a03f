//! Matrix products of unsigned and signed bytes: packing, and register tiles.
//!
//! Four input channels make a group: a word of the input holds the bytes of one pixel, a word of the weight those of
//! one output channel. Words of the weight are packed in panels of one to three vectors of output channels.

use crate::ops::buffers::Aligned;
use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, opaque};
use bytemuck::{cast_slice, cast_slice_mut};

/// Largest number of vectors of a panel.
pub(super) const PANEL: usize = 3;

/// A weight `[n, k]` in panels for the active instruction set; columns beyond `n` and inputs beyond `k` are zero.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    words: Aligned,
    pub k: usize,
    pub n: usize,
    /// Number of groups of four inputs.
    pub groups: usize,
}

/// Some vectors of columns of a weight.
pub(super) struct Panel<'a> {
    words: &'a [i32],
    /// First column.
    pub column: usize,
    /// Number of vectors.
    pub vectors: usize,
}

/// Number of vectors of the next panel, of `left` to come: three where registers hold the tile, but two and two rather
/// than three and one.
fn panel_vectors(left: usize, lanes: usize) -> usize {
    match left {
        1 => 1,
        3 | 5.. if lanes == 16 => 3,
        _ => 2,
    }
}

impl Packed {
    /// Packs `weight` `[n, k]`.
    pub(super) fn new(weight: &[i8], n: usize, k: usize) -> Self {
        assert!(weight.len() == n * k && k > 0);
        let lanes = InstructionSet::active().lanes();
        let groups = k.div_ceil(4);
        let mut packed = Packed { words: Aligned::zeros(n.div_ceil(lanes) * lanes * groups), k, n, groups };
        let panels: Vec<_> = packed.panels().map(|panel| (panel.column, panel.vectors * lanes)).collect();
        for (column, width) in panels {
            let words = &mut cast_slice_mut::<f32, i32>(&mut packed.words)[column * groups..][..width * groups];
            for (group, row) in words.chunks_exact_mut(width).enumerate() {
                for (word, filter) in row.iter_mut().zip(weight[column * k..].chunks_exact(k)) {
                    let byte = |i: usize| filter.get(4 * group + i).copied().unwrap_or(0) as u8;
                    *word = i32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
                }
            }
        }
        packed
    }

    /// The panels from left to right.
    pub(super) fn panels(&self) -> impl Iterator<Item = Panel<'_>> {
        let lanes = InstructionSet::active().lanes();
        let (mut column, mut left) = (0, self.n.div_ceil(lanes));
        std::iter::from_fn(move || {
            (left > 0).then(|| {
                let vectors = panel_vectors(left, lanes);
                let words =
                    &cast_slice::<f32, i32>(&self.words)[column * self.groups..][..vectors * lanes * self.groups];
                let panel = Panel { words, column, vectors };
                left -= vectors;
                column += vectors * lanes;
                panel
            })
        })
    }
}

impl Panel<'_> {
    /// Writes the sums `[rows, vectors]` of `rows` rows of `x`, `stride` bytes apart and each of whole groups, from the
    /// whole `bias` of the layer.
    pub(super) fn multiply(&self, x: &[u8], stride: usize, rows: usize, bias: &[i32], sums: &mut [i32]) {
        let lanes = InstructionSet::active().lanes();
        let bias = &bias[self.column..][..self.vectors * lanes];
        match self.vectors {
            1 => dispatch(Product::<1> { x, stride, rows, words: self.words, bias, sums }),
            2 => dispatch(Product::<2> { x, stride, rows, words: self.words, bias, sums }),
            _ => dispatch(Product::<3> { x, stride, rows, words: self.words, bias, sums }),
        }
    }
}

/// `sums[row, ..] = bias + sum over groups of x[row, group] . words[group, ..]` for a panel of `NR` vectors.
struct Product<'a, const NR: usize> {
    x: &'a [u8],
    stride: usize,
    rows: usize,
    words: &'a [i32],
    bias: &'a [i32],
    sums: &'a mut [i32],
}

impl<const NR: usize> Kernel for Product<'_, NR> {
    type Output = ();
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = NR * S::LANES;
        let groups = self.words.len() / width;
        // All accesses below rely on these extents.
        assert!(self.rows > 0 && groups > 0 && self.bias.len() >= width && self.sums.len() >= self.rows * width);
        assert!(self.x.len() >= (self.rows - 1) * self.stride + 4 * groups);
        let mut row = 0;
        // SAFETY: each tile ends at `rows` at the latest, for which the extents were checked.
        unsafe {
            match (NR, S::ACCUMULATORS) {
                (1, 24) => self.tiles::<S, 16>(s, groups, &mut row),
                (_, 24) => self.tiles::<S, 8>(s, groups, &mut row),
                _ => {}
            }
            if S::ACCUMULATORS > 4 {
                self.tiles::<S, 4>(s, groups, &mut row);
            }
            self.tiles::<S, 2>(s, groups, &mut row);
            self.tiles::<S, 1>(s, groups, &mut row);
        }
    }
}

impl<const NR: usize> Product<'_, NR> {
    /// Computes tiles of `MR` rows from `row` on, as far as whole ones reach.
    ///
    /// # Safety
    /// `run` checked the extents of `rows` rows and `groups` groups.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const MR: usize>(&mut self, s: S, groups: usize, row: &mut usize) {
        while *row + MR <= self.rows {
            // SAFETY: the tile's rows lie below `rows`; the extents are the contract's.
            unsafe { self.tile::<S, MR>(s, groups, *row) };
            *row += MR;
        }
    }

    /// A tile of `MR` rows.
    ///
    /// # Safety
    /// As for [`tiles`](Self::tiles), and `row + MR <= rows`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize>(&mut self, s: S, groups: usize, row: usize) {
        let width = NR * S::LANES;
        // SAFETY: `run` asserted that every row of `x` has `groups` words, the panel `groups` rows of `NR` vectors, the
        // bias one and the sums one per row. `fours[r / 4]` was set for every `r < MR`.
        unsafe {
            let mut bias = [s.splat_i32(0); NR];
            for (n, bias) in bias.iter_mut().enumerate() {
                *bias = s.load_i32(self.bias.as_ptr().add(n * S::LANES));
            }
            let mut sums = [bias; MR];
            for group in 0..groups {
                // Address of the first of each four rows.
                let mut fours = [self.x.as_ptr(); 4];
                for (four, x) in fours.iter_mut().enumerate().take(MR.div_ceil(4)) {
                    let first = self.x.as_ptr().wrapping_add((row + 4 * four) * self.stride + 4 * group);
                    *x = opaque(first.cast()).cast();
                }
                let words = self.words.as_ptr().add(group * width);
                let mut panel = [s.splat_i32(0); NR];
                for (n, word) in panel.iter_mut().enumerate() {
                    *word = s.load_i32(words.add(n * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = fours[r / 4].add(r % 4 * self.stride).cast::<[u8; 4]>().read();
                    let x = s.splat_i32(i32::from_le_bytes(x));
                    for n in 0..NR {
                        sums[n] = s.dot(sums[n], x, panel[n]);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    s.store_i32(self.sums.as_mut_ptr().add((row + r) * width + n * S::LANES), sum);
                }
            }
        }
    }
}
