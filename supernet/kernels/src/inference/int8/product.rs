//! Matrix products of unsigned and signed bytes: packing, and register tiles.
//!
//! Some input channels make a group, as many as a word has values: a word of the input holds the values of one pixel, a
//! word of the weight those of one output channel. Words of the weight are packed in panels of one to three vectors of
//! output channels. Where a word has two values of 16 bits, rows of the input are widened before they are multiplied,
//! once for all panels; the weight is kept as bytes, half of the memory, and widened as it is loaded.

use super::affine::{Affine, Channels};
use super::ends::{End, Ending, Target};
use crate::Activation;
use crate::buffers::Aligned;
use crate::inference::padded::Layout;
use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, opaque};
use bytemuck::{cast_slice, cast_slice_mut};

/// A weight `[n, k]` in panels for the active instruction set; columns beyond `n` and inputs beyond `k` are zero.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// Bytes, four to a float: `[panel][group][column][value]`.
    bytes: Aligned,
    pub k: usize,
    pub n: usize,
    /// Number of groups of inputs: of words in a row.
    pub groups: usize,
}

/// Groups of a step of the innermost loop where words are pairs.
const UNROLLED: usize = 4;

/// Some vectors of columns of a weight.
pub(super) struct Panel<'a> {
    weight: &'a [i8],
    /// First column.
    pub column: usize,
    /// Number of vectors.
    vectors: usize,
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
        let (lanes, values) = (InstructionSet::active().lanes(), InstructionSet::active().word_values());
        let groups = k.div_ceil(values);
        let floats = (n.next_multiple_of(lanes) * groups * values).div_ceil(4);
        let mut packed = Packed { bytes: Aligned::zeros(floats), k, n, groups };
        let panels: Vec<_> = packed.panels().map(|panel| (panel.column, panel.vectors * lanes)).collect();
        for (column, width) in panels {
            let row = groups * values;
            let bytes = &mut cast_slice_mut::<f32, i8>(&mut packed.bytes)[column * row..][..width * row];
            for (group, words) in bytes.chunks_exact_mut(width * values).enumerate() {
                let filters = weight[column * k..].chunks_exact(k);
                for (word, filter) in words.chunks_exact_mut(values).zip(filters) {
                    word.iter_mut().zip(&filter[values * group..]).for_each(|(byte, &input)| *byte = input);
                }
            }
        }
        packed
    }

    /// The panels from left to right.
    pub(super) fn panels(&self) -> impl Iterator<Item = Panel<'_>> {
        let (lanes, values) = (InstructionSet::active().lanes(), InstructionSet::active().word_values());
        let (mut column, mut left) = (0, self.n.div_ceil(lanes));
        std::iter::from_fn(move || {
            (left > 0).then(|| {
                let vectors = panel_vectors(left, lanes);
                let row = self.groups * values;
                let weight = &cast_slice::<f32, i8>(&self.bytes)[column * row..][..vectors * lanes * row];
                let panel = Panel { weight, column, vectors };
                left -= vectors;
                column += vectors * lanes;
                panel
            })
        })
    }
}

impl Panel<'_> {
    /// Number of columns, with those beyond the weight's.
    fn width(&self) -> usize {
        self.vectors * InstructionSet::active().lanes()
    }

    /// The end of a layer of `n` channels for the panel's, of which the target and the residual begin with the first.
    pub(super) fn end<'e>(
        &self,
        n: usize,
        channels: &'e Channels,
        target: Target<'e>,
        residual: Option<(&'e [u8], Affine)>,
        activation: Activation,
    ) -> End<'e> {
        let multipliers = &channels.multipliers[self.column..][..self.width()];
        End { target, step: n, width: self.width().min(n - self.column), multipliers, residual, activation }
    }

    /// Multiplies `rows` rows of `x`, whose values of words `layout` counts, from the whole `bias` of the layer.
    pub(super) fn multiply(&self, x: &[u8], layout: Layout, rows: usize, bias: &[i32], end: End) {
        let bias = &bias[self.column..][..self.width()];
        match self.vectors {
            1 => dispatch(Product::<1> { x, layout, rows, weight: self.weight, bias, end }),
            2 => dispatch(Product::<2> { x, layout, rows, weight: self.weight, bias, end }),
            _ => dispatch(Product::<3> { x, layout, rows, weight: self.weight, bias, end }),
        }
    }
}

/// Copies bytes as the values of words of two.
#[inline(always)]
pub(super) fn widen(values: &mut [u16], bytes: &[u8]) {
    values.iter_mut().zip(bytes).for_each(|(value, &byte)| *value = byte.into());
}

/// `end(bias + sum over groups of x[row, group] . weight[group, ..])` for a panel of `NR` vectors.
struct Product<'a, const NR: usize> {
    x: &'a [u8],
    layout: Layout,
    rows: usize,
    weight: &'a [i8],
    bias: &'a [i32],
    end: End<'a>,
}

impl<const NR: usize> Kernel for Product<'_, NR> {
    type Output = ();
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = NR * S::LANES;
        let (values, groups) = (S::WORD_VALUES, self.weight.len() / (width * S::WORD_VALUES));
        // All accesses below rely on these extents.
        assert!(self.rows > 0 && groups > 0 && self.bias.len() >= width);
        assert!(self.layout.run.is_multiple_of(values) && values * groups == self.layout.runs * self.layout.run);
        assert!(self.x.len() >= self.layout.extent(self.rows) * (4 / values));
        let pairs = S::LANES == 16 && S::WORD_VALUES == 4 && NR > 1 && 2 * self.end.width == 2 * width - S::LANES;
        let end = &mut std::mem::take(&mut self.end).ending(s, self.rows);
        let mut row = 0;
        let in_fours = self.layout.in_fours(self.rows);
        // SAFETY: each tile ends at `rows` at the latest, for which the extents were checked; `FOURS` and `PAIRS` are
        // set only where `in_fours` and `pairs` hold.
        unsafe {
            match (NR, S::ACCUMULATORS, in_fours) {
                (1, 24, true) => self.tiles::<S, 16, true, false>(s, &mut row, end),
                (2.., 24, true) if pairs => self.tiles::<S, 8, true, true>(s, &mut row, end),
                (_, 24, true) => self.tiles::<S, 8, true, false>(s, &mut row, end),
                (_, 24, false) => self.tiles::<S, 8, false, false>(s, &mut row, end),
                _ => {}
            }
            if S::ACCUMULATORS > 4 {
                match in_fours {
                    true => self.tiles::<S, 4, true, false>(s, &mut row, end),
                    false => self.tiles::<S, 4, false, false>(s, &mut row, end),
                }
            }
            self.tiles::<S, 2, false, false>(s, &mut row, end);
            self.tiles::<S, 1, false, false>(s, &mut row, end);
        }
    }
}

impl<const NR: usize> Product<'_, NR> {
    /// Computes tiles of `MR` rows from `row` on, as far as whole ones reach.
    ///
    /// # Safety
    /// `run` checked the extents of `rows` rows, and `end` is that of all rows. With `FOURS`, four rows from a multiple
    /// of 4 on lie in a line, and `row` is such a multiple. With `PAIRS`, half of the last vector exists: one vector
    /// sums it for two rows.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const MR: usize, const FOURS: bool, const PAIRS: bool>(
        &self,
        s: S,
        row: &mut usize,
        end: &mut Ending<S, NR>,
    ) {
        while *row + MR <= self.rows {
            // SAFETY: the tile's rows lie below `rows`; the rest is the contract's.
            unsafe { self.tile::<S, MR, FOURS, PAIRS>(s, *row, end) };
            *row += MR;
        }
    }

    /// A tile of `MR` rows.
    ///
    /// # Safety
    /// As for [`tiles`](Self::tiles), and `row + MR <= rows`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const FOURS: bool, const PAIRS: bool>(
        &self,
        s: S,
        row: usize,
        end: &mut Ending<S, NR>,
    ) {
        let width = NR * S::LANES;
        // SAFETY: `run` asserted that every row of `x` has `groups` words, the panel `groups` rows of `NR` vectors, the
        // bias one, and the end room for one per row. `places` were set for every row that is read.
        unsafe {
            let mut bias = [s.splat_i32(0); NR];
            for (n, bias) in bias.iter_mut().enumerate() {
                let place = self.bias.as_ptr().add(n * S::LANES);
                *bias = if PAIRS && n + 1 == NR { s.load_twice_i32(place) } else { s.load_i32(place) };
            }
            let mut sums = [bias; MR];
            // Places of all rows, or of the first of each four.
            let mut places = [0; MR];
            for (r, place) in places.iter_mut().enumerate().filter(|(r, _)| !FOURS || r % 4 == 0) {
                *place = self.layout.place(row + r) * (4 / S::WORD_VALUES);
            }
            // Bytes of a value.
            let size = 4 / S::WORD_VALUES;
            let mut weight = self.weight.as_ptr();
            for run in 0..self.layout.runs {
                let x = self.x.as_ptr().wrapping_add(run * self.layout.run_step * size);
                let (mut group, groups) = (0, self.layout.run / S::WORD_VALUES);
                // A group of pairs is so few instructions that the loop's own would count.
                while S::WORD_VALUES == 2 && group + UNROLLED <= groups {
                    self.steps::<S, MR, FOURS, PAIRS, UNROLLED>(
                        s,
                        x.wrapping_add(4 * group),
                        weight,
                        &places,
                        &mut sums,
                    );
                    (group, weight) = (group + UNROLLED, weight.add(UNROLLED * width * S::WORD_VALUES));
                }
                while group < groups {
                    self.steps::<S, MR, FOURS, PAIRS, 1>(s, x.wrapping_add(4 * group), weight, &places, &mut sums);
                    (group, weight) = (group + 1, weight.add(width * S::WORD_VALUES));
                }
            }
            if PAIRS {
                for r in (1..MR).step_by(2) {
                    sums[r][NR - 1] = s.upper_half_i32(sums[r - 1][NR - 1]);
                }
            }
            end.write(s, row, sums);
        }
    }

    /// Adds the products of `COUNT` groups, the first of which has the words at `places` from `x` on, and the words of
    /// the panel at `weight`.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile). All of these words exist, and `places` has the place of each row, or with `FOURS`
    /// that of the first of each four.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // counted loops over two axes, which the compiler unrolls
    unsafe fn steps<S: Simd, const MR: usize, const FOURS: bool, const PAIRS: bool, const COUNT: usize>(
        &self,
        s: S,
        x: *const u8,
        weight: *const i8,
        places: &[usize; MR],
        sums: &mut [[S::I; NR]; MR],
    ) {
        let step = self.layout.step * (4 / S::WORD_VALUES);
        // SAFETY: the contract gives all words that are read, at the place of their row or, with `FOURS`, from that of
        // the first of its four on, which lie in a line.
        unsafe {
            let mut fours = [x; 4];
            if FOURS {
                for (first, place) in fours.iter_mut().zip(places.iter().step_by(4)) {
                    *first = opaque(x.wrapping_add(*place).cast()).cast();
                }
            }
            for group in 0..COUNT {
                let mut panel = [s.splat_i32(0); NR];
                for (n, word) in panel.iter_mut().enumerate() {
                    let place = weight.add((group * NR + n) * S::LANES * S::WORD_VALUES);
                    *word = if PAIRS && n + 1 == NR { s.load_twice_i32(place.cast()) } else { s.load_weights(place) };
                }
                let mut even = s.splat_i32(0);
                for r in 0..MR {
                    let x = if FOURS { fours[r / 4].add(r % 4 * step) } else { x.add(places[r]) };
                    let x = s.splat_i32(i32::from_ne_bytes(x.add(4 * group).cast::<[u8; 4]>().read()));
                    for n in 0..NR - usize::from(PAIRS) {
                        sums[r][n] = s.dot(sums[r][n], x, panel[n]);
                    }
                    if PAIRS && r % 2 == 1 {
                        let both = s.join_halves_i32(even, x);
                        sums[r - 1][NR - 1] = s.dot(sums[r - 1][NR - 1], both, panel[NR - 1]);
                    }
                    even = x;
                }
            }
        }
    }
}
