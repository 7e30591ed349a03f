//! Products over pixels, whose ends (bias, residual, activation) are computed in registers.
//!
//! Weights lie in slices of output channels. A tile holds some pixels and up to [`GROUP`] slices; each sum adds its
//! products in the order of the input channels, whatever the tile.

use super::padded::Layout;
use crate::Activation;
use crate::activation::{Act, with_activation};
use crate::buffers::Aligned;
use crate::simd::{Kernel, Simd, entry_points, opaque};
use crate::slice::SLICE;

/// Most slices of a product.
pub(super) const GROUP: usize = 3;

/// Extent of the last vector of a tile's rows: `WHOLE`, `HALF` or `PART` of it exists.
const WHOLE: usize = 0;
const HALF: usize = 1;
const PART: usize = 2;

/// Distance in input values at which weights are prefetched: a page of memory, at whose end the processor's own
/// prefetching stops. The weights of a large network are in no cache when a layer begins.
const AHEAD: usize = 64;

/// Number of slices of the next product, of `left`: three, but two and two rather than three and one.
pub(super) fn group(left: usize) -> usize {
    if left == 4 { 2 } else { left.min(GROUP) }
}

/// A weight and a bias in slices of output channels, `[slice][in][SLICE]` and `[slice][SLICE]`; channels that do not
/// exist are zero.
#[derive(Debug, Clone)]
pub(super) struct Slices {
    weight: Aligned,
    bias: Aligned,
    pub inputs: usize,
    pub outputs: usize,
}

impl Slices {
    /// Packs the weight `[out, in]` and bias `[out]`.
    pub fn new(weight: &[f32], bias: &[f32], inputs: usize, outputs: usize) -> Self {
        assert_eq!((weight.len(), bias.len()), (inputs * outputs, outputs));
        let slices = outputs.div_ceil(SLICE);
        let mut packed = Aligned::zeros(slices * inputs * SLICE);
        for (output, weight) in weight.chunks_exact(inputs).enumerate() {
            let slice = &mut packed[output / SLICE * inputs * SLICE..];
            for (input, &value) in weight.iter().enumerate() {
                slice[input * SLICE + output % SLICE] = value;
            }
        }
        let mut padded = Aligned::zeros(slices * SLICE);
        padded[..outputs].copy_from_slice(bias);
        Slices { weight: packed, bias: padded, inputs, outputs }
    }

    /// Number of slices.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(SLICE)
    }
}

/// `output[row, channel] = activation(left[row] x weight + bias + residual[row, channel])` for the channels of `group`
/// slices from `first` on.
pub(super) struct Product<'a> {
    /// Input values of the rows.
    pub left: &'a [f32],
    pub layout: Layout,
    pub rows: usize,
    pub weight: &'a Slices,
    pub first: usize,
    pub group: usize,
    pub activation: Activation,
    /// Laid out as the output.
    pub residual: Option<&'a [f32]>,
    pub output: &'a mut [f32],
    /// Distances in the output from a row to the next, and from a slice to the next.
    pub steps: (usize, usize),
    /// Channels that are written, of all slices: more than the last slice holds only where the output has room for
    /// whole slices.
    pub width: usize,
}

impl Kernel for Product<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (k, slices) = (self.weight.inputs, self.group);
        assert!(self.rows > 0 && k > 0 && (1..=GROUP).contains(&slices));
        assert!(self.width > (slices - 1) * SLICE && self.width <= slices * SLICE);
        assert!(self.first + slices <= self.weight.count() && k == self.layout.runs * self.layout.run);
        assert!(self.left.len() >= self.layout.extent(self.rows));
        // The accesses of `tile` rely on these extents.
        let (row_step, slice_step) = self.steps;
        let last = (self.rows - 1) * row_step + (slices - 1) * slice_step + self.width - (slices - 1) * SLICE;
        let before = if slices > 1 { (self.rows - 1) * row_step + (slices - 2) * slice_step + SLICE } else { 0 };
        assert!(self.output.len() >= last.max(before));
        assert!(self.residual.is_none_or(|residual| residual.len() >= last.max(before)));
        let width = self.width;
        let vectors = |slice: usize| (width - slice * SLICE).min(SLICE).div_ceil(S::LANES);
        match (S::LANES, slices) {
            (16, 3) => self.rows::<S, 8, 3, 1>(s, 0),
            (16, 2) => self.rows::<S, 8, 2, 1>(s, 0),
            (16, _) => self.rows::<S, 16, 1, 1>(s, 0),
            _ => {
                for number in 0..slices {
                    match (S::ACCUMULATORS, S::LANES, vectors(number)) {
                        (24, 4, 4) => self.rows::<S, 6, 1, 4>(s, number),
                        (24, 4, 3) => self.rows::<S, 8, 1, 3>(s, number),
                        (24, 4, 2) => self.rows::<S, 8, 1, 2>(s, number),
                        (24, 4, _) => self.rows::<S, 8, 1, 1>(s, number),
                        (12, _, 2) if k <= 24 => self.rows::<S, 4, 1, 2>(s, number),
                        (12, _, 2) => self.rows::<S, 6, 1, 2>(s, number),
                        (12, _, _) => self.rows::<S, 8, 1, 1>(s, number),
                        (_, _, 2) => self.rows::<S, 2, 1, 2>(s, number),
                        (_, _, _) => self.rows::<S, 4, 1, 1>(s, number),
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// All rows of `SLICES` slices from `slice` on, of `VECTORS` vectors each, in tiles `HIGH` rows high.
    #[inline(always)]
    fn rows<S: Simd, const HIGH: usize, const SLICES: usize, const VECTORS: usize>(&mut self, s: S, slice: usize) {
        let fours = S::SPLATS_FROM_MEMORY && self.layout.in_fours(self.rows);
        let pairs = S::LANES == SLICE && SLICES > 1 && 2 * (self.width - (SLICES - 1) * SLICE) == SLICE;
        match (fours, pairs) {
            (true, true) => self.tiles::<S, HIGH, SLICES, VECTORS, true, true>(s, slice),
            (true, false) => self.tiles::<S, HIGH, SLICES, VECTORS, true, false>(s, slice),
            (false, _) => self.tiles::<S, HIGH, SLICES, VECTORS, false, false>(s, slice),
        }
    }

    /// [`rows`](Self::rows), where `FOURS` says that four rows from a multiple of 4 on are addressed by the first one,
    /// and `PAIRS` that the last slice is half a vector: one vector sums it for two rows.
    #[inline(always)]
    fn tiles<
        S: Simd,
        const HIGH: usize,
        const SLICES: usize,
        const VECTORS: usize,
        const FOURS: bool,
        const PAIRS: bool,
    >(
        &mut self,
        s: S,
        slice: usize,
    ) {
        let mut row = 0;
        while row + HIGH <= self.rows {
            self.tile::<S, HIGH, SLICES, VECTORS, FOURS, PAIRS>(s, row, slice);
            row += HIGH;
        }
        while HIGH > 8 && row + 8 <= self.rows {
            self.tile::<S, 8, SLICES, VECTORS, FOURS, PAIRS>(s, row, slice);
            row += 8;
        }
        while HIGH > 4 && row + 4 <= self.rows {
            self.tile::<S, 4, SLICES, VECTORS, FOURS, PAIRS>(s, row, slice);
            row += 4;
        }
        while HIGH > 2 && row + 2 <= self.rows {
            self.tile::<S, 2, SLICES, VECTORS, FOURS, PAIRS>(s, row, slice);
            row += 2;
        }
        while row < self.rows {
            self.tile::<S, 1, SLICES, VECTORS, FOURS, false>(s, row, slice);
            row += 1;
        }
    }

    /// A tile of `HIGH` rows from `row` on, for whose rows and slices [`run`](Kernel::run) checked the extents.
    #[inline(always)]
    fn tile<
        S: Simd,
        const HIGH: usize,
        const SLICES: usize,
        const VECTORS: usize,
        const FOURS: bool,
        const PAIRS: bool,
    >(
        &mut self,
        s: S,
        row: usize,
        slice: usize,
    ) {
        assert!(row + HIGH <= self.rows && slice + SLICES <= self.group);
        assert!(!FOURS || row.is_multiple_of(4.min(HIGH)) && (HIGH < 4 || HIGH.is_multiple_of(4)));
        let k = self.weight.inputs;
        let weight = self.weight.weight[(self.first + slice) * k * SLICE..][..SLICES * k * SLICE].as_ptr();
        let bias = &self.weight.bias[(self.first + slice) * SLICE..][..SLICES * SLICE];
        // The last vector's extent is decided once per tile.
        let kept = self.width.saturating_sub((slice + SLICES - 1) * SLICE + (VECTORS - 1) * S::LANES);
        let mut sums = [[[s.splat(0.0); VECTORS]; SLICES]; HIGH];
        // Places of all rows, or of the first of each four.
        let mut places = [0; HIGH];
        for (r, place) in places.iter_mut().enumerate().filter(|(r, _)| !FOURS || r % 4 == 0) {
            *place = self.layout.place(row + r);
        }
        let Layout { runs, run, run_step, .. } = self.layout;
        // SAFETY: `done + COUNT <= run`; the weight holds `SLICES` slices of `k` whole slices of channels, and `left`
        // the runs of each of the tile's rows, which exist as just asserted, with `FOURS` four of them in a line. `run`
        // asserted that the `width` channels of each row exist in output and residual, and `kept` of them lie in the
        // last vector.
        unsafe {
            for number in 0..runs {
                let left = self.left.as_ptr().add(number * run_step);
                let weight = weight.add(number * run * SLICE);
                let mut done = 0;
                while S::ACCUMULATORS > 4 && done + 4 <= run {
                    let (left, weight) = (left.add(done), weight.add(done * SLICE));
                    self.add::<S, HIGH, SLICES, VECTORS, 4, FOURS, PAIRS>(s, left, &places, weight, &mut sums);
                    done += 4;
                }
                while done < run {
                    let (left, weight) = (left.add(done), weight.add(done * SLICE));
                    self.add::<S, HIGH, SLICES, VECTORS, 1, FOURS, PAIRS>(s, left, &places, weight, &mut sums);
                    done += 1;
                }
            }
            if PAIRS {
                for r in (1..HIGH).step_by(2) {
                    sums[r][SLICES - 1][0] = s.upper_half(sums[r - 1][SLICES - 1][0]);
                }
            }
            // Loops of few instructions each, which the compiler unrolls, so that sums stay in registers.
            for (number, bias) in bias.chunks_exact(SLICE).enumerate() {
                for v in 0..VECTORS {
                    let bias = s.read(&bias[v * S::LANES..][..S::LANES]);
                    sums.iter_mut().for_each(|sums| sums[number][v] = s.add(sums[number][v], bias));
                }
            }
            match kept {
                _ if kept >= S::LANES => self.end::<S, HIGH, SLICES, VECTORS, WHOLE>(s, row, slice, sums),
                _ if 2 * kept == S::LANES => self.end::<S, HIGH, SLICES, VECTORS, HALF>(s, row, slice, sums),
                _ => self.end::<S, HIGH, SLICES, VECTORS, PART>(s, row, slice, sums),
            }
        }
    }

    /// Adds the residual, applies the activation and writes a tile, of whose last vector `LAST` says how much exists.
    ///
    /// # Safety
    /// The rows lie below `rows` and the slices below `group`, for which [`run`](Kernel::run) checked the extents;
    /// `LAST` is that of `width`.
    #[allow(clippy::needless_range_loop)] // counted loops over three axes, which the compiler unrolls
    #[inline(always)]
    unsafe fn end<S: Simd, const HIGH: usize, const SLICES: usize, const VECTORS: usize, const LAST: usize>(
        &mut self,
        s: S,
        row: usize,
        slice: usize,
        mut sums: [[[S::V; VECTORS]; SLICES]; HIGH],
    ) {
        let (row_step, slice_step) = self.steps;
        let part = self.width.saturating_sub((slice + SLICES - 1) * SLICE + (VECTORS - 1) * S::LANES);
        let place = |r: usize, number: usize, v: usize| {
            let start = (row + r) * row_step + (slice + number) * slice_step + v * S::LANES;
            let kept = match LAST {
                HALF if (number, v) == (SLICES - 1, VECTORS - 1) => S::LANES / 2,
                PART if (number, v) == (SLICES - 1, VECTORS - 1) => part,
                _ => S::LANES,
            };
            (start, kept)
        };
        // SAFETY: the contract gives, at each place's start, `kept` floats of the residual and room in the output.
        unsafe {
            if let Some(residual) = self.residual {
                for r in 0..HIGH {
                    for number in 0..SLICES {
                        for v in 0..VECTORS {
                            let (start, kept) = place(r, number, v);
                            let residual = s.load_up_to(residual.as_ptr().add(start), kept);
                            sums[r][number][v] = s.add(sums[r][number][v], residual);
                        }
                    }
                }
            }
            with_activation!(self.activation, A => apply::<S, A, HIGH, SLICES, VECTORS>(s, &mut sums));
            for r in 0..HIGH {
                for number in 0..SLICES {
                    for v in 0..VECTORS {
                        let (start, kept) = place(r, number, v);
                        s.store_up_to(self.output.as_mut_ptr().add(start), sums[r][number][v], kept);
                    }
                }
            }
        }
    }

    /// Adds the products of `COUNT` consecutive input values, of which `left` is the first of the row of place 0.
    ///
    /// # Safety
    /// The rows at `places` have these values, and `weight` points to the first value's weights, of which there are
    /// `SLICES` slices.
    #[allow(clippy::needless_range_loop)] // counted loops over three axes, which the compiler unrolls
    #[inline(always)]
    unsafe fn add<
        S: Simd,
        const HIGH: usize,
        const SLICES: usize,
        const VECTORS: usize,
        const COUNT: usize,
        const FOURS: bool,
        const PAIRS: bool,
    >(
        &self,
        s: S,
        left: *const f32,
        places: &[usize; HIGH],
        weight: *const f32,
        sums: &mut [[[S::V; VECTORS]; SLICES]; HIGH],
    ) {
        let k = self.weight.inputs;
        // SAFETY: the contract gives the rows and the slices of `weight`; `fours[r / 4]` was set for every `r < HIGH`
        // to the first of four rows.
        unsafe {
            let mut fours = [left; 4];
            if FOURS {
                for (first, place) in fours.iter_mut().zip(places.iter().step_by(4)) {
                    *first = opaque(left.wrapping_add(*place));
                }
            }
            for next in 0..COUNT {
                let mut panel = [[s.splat(0.0); VECTORS]; SLICES];
                for (number, panel) in panel.iter_mut().enumerate() {
                    s.prefetch(weight.wrapping_add((number * k + next + AHEAD) * SLICE));
                    let weight = weight.add((number * k + next) * SLICE);
                    for (v, value) in panel.iter_mut().enumerate() {
                        *value = if PAIRS && number + 1 == SLICES {
                            s.load_twice(weight)
                        } else {
                            s.load(weight.add(v * S::LANES))
                        };
                    }
                }
                let mut even = s.splat(0.0);
                for r in 0..HIGH {
                    let left = match FOURS {
                        true => fours[r / 4].add(r % 4 * self.layout.step + next),
                        false => left.add(places[r] + next),
                    };
                    let value = s.splat(*left);
                    for number in 0..SLICES - usize::from(PAIRS) {
                        for v in 0..VECTORS {
                            sums[r][number][v] = s.mul_add(value, panel[number][v], sums[r][number][v]);
                        }
                    }
                    if PAIRS && r % 2 == 1 {
                        let (both, last) = (s.join_halves(even, value), SLICES - 1);
                        sums[r - 1][last][0] = s.mul_add(both, panel[last][0], sums[r - 1][last][0]);
                    }
                    even = value;
                }
            }
        }
    }
}

/// Applies an activation to the sums of a tile.
#[allow(clippy::needless_range_loop)] // counted loops over three axes, which the compiler unrolls
#[inline(always)]
fn apply<S: Simd, A: Act, const HIGH: usize, const SLICES: usize, const VECTORS: usize>(
    s: S,
    sums: &mut [[[S::V; VECTORS]; SLICES]; HIGH],
) {
    for r in 0..HIGH {
        for number in 0..SLICES {
            for v in 0..VECTORS {
                sums[r][number][v] = A::values(s, sums[r][number][v]);
            }
        }
    }
}
