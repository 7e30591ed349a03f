//! Register tiles: the inner loops of matrix products.

use crate::buffers::Unwritten;
use crate::simd::{Kernel, Simd, dispatch, entry_points, opaque};
use std::ops::Range;

/// Extent of the last vector of a tile's rows: `WHOLE`, `HALF` or `PART` of it exists.
const WHOLE: usize = 0;
const HALF: usize = 1;
const PART: usize = 2;

/// Operands of one panel: `c[row, ..] (+)= sum over k of a[row, k] * b[k, ..]`; if `TRANSPOSED`, `a` is stored as
/// `a[k, row]`.
pub(super) struct Tiles<'a> {
    pub k: usize,
    pub a: &'a [f32],
    pub a_stride: usize,
    pub b: &'a [f32],
    /// Distance between rows of `b` if `TRANSPOSED`; otherwise it equals the panel's width.
    pub b_stride: usize,
    /// All floats must be written if `ADD`; otherwise those of the columns that exist are written.
    pub c: &'a mut Unwritten,
    pub c_stride: usize,
    /// Columns of `c` that exist: fewer than the panel's at the right edge.
    pub width: usize,
}

impl Tiles<'_> {
    /// Computes `rows` rows of a panel of `nr` vectors; if not `ADD`, `c` is overwritten.
    ///
    /// # Safety
    /// If `ADD`, all floats of `c` must be written.
    pub(super) unsafe fn column<const TRANSPOSED: bool, const ADD: bool>(self, nr: usize, rows: usize) {
        match nr {
            3 => dispatch(Column::<3, TRANSPOSED, ADD> { tiles: self, rows }),
            2 => dispatch(Column::<2, TRANSPOSED, ADD> { tiles: self, rows }),
            _ => dispatch(Column::<1, TRANSPOSED, ADD> { tiles: self, rows }),
        }
    }
}

/// Tiles for a number of rows, monomorphised per vector count, so that short products (most are) pay no set-up of other
/// cases.
struct Column<'a, const NR: usize, const TRANSPOSED: bool, const ADD: bool> {
    tiles: Tiles<'a>,
    rows: usize,
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Kernel for Column<'_, NR, TRANSPOSED, ADD> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tiles { k, a_stride, b_stride, c_stride, width, .. } = self.tiles;
        let (vectors, last_row) = (NR * S::LANES, self.rows - 1);
        assert!(self.rows > 0 && width <= vectors && width > vectors - S::LANES);
        // All accesses below rely on these extents.
        assert!(self.tiles.c.len() >= last_row * c_stride + width);
        if k > 0 {
            let (a_len, b_step) = if TRANSPOSED {
                ((k - 1) * a_stride + self.rows, b_stride)
            } else {
                (last_row * a_stride + k, vectors)
            };
            assert!(self.tiles.a.len() >= a_len && self.tiles.b.len() >= (k - 1) * b_step + vectors);
        }
        // A tile leaves registers for one panel row, one broadcast and one more: with 16 of 16 in use the compiler
        // spills in the innermost loop. Short products spend much of their time at the ends of tiles, where smaller
        // tiles overlap better.
        match (NR, S::ACCUMULATORS) {
            (3, 24) => self.blocks::<S, 8>(s),
            (3, 12) => self.blocks::<S, 3>(s),
            (3, _) => self.blocks::<S, 1>(s),
            (2, 24) => self.blocks::<S, 8>(s),
            (2, 12) if k <= 24 => self.blocks::<S, 4>(s),
            (2, 12) => self.blocks::<S, 6>(s),
            (2, _) => self.blocks::<S, 2>(s),
            (_, 24) => self.blocks::<S, 16>(s),
            (_, 12) => self.blocks::<S, 8>(s),
            (_, _) => self.blocks::<S, 4>(s),
        }
    }
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Column<'_, NR, TRANSPOSED, ADD> {
    /// All rows, in tiles `MR` high.
    #[inline(always)]
    fn blocks<S: Simd, const MR: usize>(self, s: S) {
        let Column { mut tiles, rows } = self;
        let mut row = 0;
        while row + MR <= rows {
            // SAFETY: the tile's rows lie below `rows`, for which `run` checked the extents.
            unsafe { tiles.block::<S, MR, NR, TRANSPOSED, ADD>(s, row) };
            row += MR;
        }
        if row < rows {
            dispatch(Rest::<NR, TRANSPOSED, ADD> { tiles, rows: row..rows });
        }
    }
}

/// Rows left over after the whole tiles of a column. Only [`Column::blocks`] builds one, after its extents were
/// checked.
struct Rest<'a, const NR: usize, const TRANSPOSED: bool, const ADD: bool> {
    tiles: Tiles<'a>,
    rows: Range<usize>,
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Kernel for Rest<'_, NR, TRANSPOSED, ADD> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rest { mut tiles, rows: Range { start: mut row, end } } = self;
        // SAFETY: each tile's rows, 8, 4, 2 or 1 from `row`, lie below `end`, which is the column's number of rows, for
        // which `Column::run` checked the extents.
        unsafe {
            while S::ACCUMULATORS == 24 && row + 8 <= end {
                tiles.block::<S, 8, NR, TRANSPOSED, ADD>(s, row);
                row += 8;
            }
            while S::ACCUMULATORS > 4 && row + 4 <= end {
                tiles.block::<S, 4, NR, TRANSPOSED, ADD>(s, row);
                row += 4;
            }
            while row + 2 <= end {
                tiles.block::<S, 2, NR, TRANSPOSED, ADD>(s, row);
                row += 2;
            }
            if row < end {
                tiles.block::<S, 1, NR, TRANSPOSED, ADD>(s, row);
            }
        }
    }
}

impl Tiles<'_> {
    /// A tile of `MR` rows and `NR` vectors.
    ///
    /// # Safety
    /// The extents that [`Column`] checks hold for the rows `row..row + MR`: for each of them and each `k` below
    /// `self.k` the value of `a` and `NR` vectors of `b` exist, and the first `width` floats of the row of `c`, which
    /// reach into the last vector.
    #[inline(always)]
    unsafe fn block<S: Simd, const MR: usize, const NR: usize, const TRANSPOSED: bool, const ADD: bool>(
        &mut self,
        s: S,
        row: usize,
    ) {
        // The last vector's extent is decided once per tile, so that sums stay in registers.
        let last = self.width.saturating_sub((NR - 1) * S::LANES);
        let last = match last {
            _ if last >= S::LANES => WHOLE,
            _ if 2 * last == S::LANES => HALF,
            _ => PART,
        };
        // SAFETY: the contract gives the extents for the tile's rows; `k` and the steps from it stay within `self.k`,
        // and `last` says how much of the last vector lies below `width`.
        unsafe {
            let mut sums = match last {
                _ if !ADD => [[s.splat(0.0); NR]; MR],
                WHOLE => self.begin::<S, MR, NR, WHOLE>(s, row),
                HALF => self.begin::<S, MR, NR, HALF>(s, row),
                _ => self.begin::<S, MR, NR, PART>(s, row),
            };
            let mut k = 0;
            // Four steps are unrolled, since loop counters and addresses cost about as much as one. Eight steps of a
            // tile of sixteen rows are more instructions than the processor keeps decoded.
            while S::ACCUMULATORS > 4 && k + 4 <= self.k {
                self.steps::<S, MR, NR, TRANSPOSED, 4>(s, row, k, &mut sums);
                k += 4;
            }
            while k < self.k {
                self.steps::<S, MR, NR, TRANSPOSED, 1>(s, row, k, &mut sums);
                k += 1;
            }
            match last {
                WHOLE => self.finish::<S, MR, NR, WHOLE>(s, row, &sums),
                HALF => self.finish::<S, MR, NR, HALF>(s, row, &sums),
                _ => self.finish::<S, MR, NR, PART>(s, row, &sums),
            }
        }
    }

    /// Number of floats that exist of vector `n` of a row.
    #[inline(always)]
    fn kept<S: Simd, const NR: usize, const LAST: usize>(&self, n: usize) -> usize {
        match (n + 1 == NR, LAST) {
            (true, HALF) => S::LANES / 2,
            (true, PART) => self.width.saturating_sub(n * S::LANES),
            _ => S::LANES,
        }
    }

    /// Loads a tile of `c`.
    ///
    /// # Safety
    /// As for [`block`](Self::block); `LAST` says how much of the last vector exists.
    #[inline(always)]
    unsafe fn begin<S: Simd, const MR: usize, const NR: usize, const LAST: usize>(
        &self,
        s: S,
        row: usize,
    ) -> [[S::V; NR]; MR] {
        // SAFETY: the first `width` floats of each of the tile's rows of `c` exist by the contract; `kept` limits each
        // load to them. Only sums that are added to (`ADD`) are loaded, and these are written (contract of `column`).
        unsafe {
            let mut sums = [[s.splat(0.0); NR]; MR];
            for (r, sums) in sums.iter_mut().enumerate() {
                let c = self.c.as_ptr().cast::<f32>().add((row + r) * self.c_stride);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load_up_to(c.add(n * S::LANES), self.kept::<S, NR, LAST>(n));
                }
            }
            sums
        }
    }

    /// Stores a tile of `c`.
    ///
    /// # Safety
    /// As for [`block`](Self::block); `LAST` says how much of the last vector exists.
    #[inline(always)]
    unsafe fn finish<S: Simd, const MR: usize, const NR: usize, const LAST: usize>(
        &mut self,
        s: S,
        row: usize,
        sums: &[[S::V; NR]; MR],
    ) {
        // SAFETY: the first `width` floats of each of the tile's rows of `c` are writable by the contract; `kept`
        // limits each store to them.
        unsafe {
            for (r, sums) in sums.iter().enumerate() {
                let c = self.c.as_mut_ptr().cast::<f32>().add((row + r) * self.c_stride);
                for (n, &sum) in sums.iter().enumerate() {
                    s.store_up_to(c.add(n * S::LANES), sum, self.kept::<S, NR, LAST>(n));
                }
            }
        }
    }

    /// Adds the products of `COUNT` consecutive values of `k`.
    ///
    /// # Safety
    /// As for [`block`](Self::block), and `k + COUNT <= self.k`.
    #[inline(always)]
    unsafe fn steps<S: Simd, const MR: usize, const NR: usize, const TRANSPOSED: bool, const COUNT: usize>(
        &self,
        s: S,
        row: usize,
        k: usize,
        sums: &mut [[S::V; NR]; MR],
    ) {
        let (a_row, a_k) = if TRANSPOSED { (1, self.a_stride) } else { (self.a_stride, 1) };
        let b_k = if TRANSPOSED { self.b_stride } else { NR * S::LANES };
        // SAFETY: the contract gives `NR` whole vectors of `b` at each of the `COUNT` steps and a value of `a` at each
        // step in each of the `MR` rows. `fours[r / 4]` was set for every `r < MR` and points at such a value.
        unsafe {
            // Address of the first of each four rows.
            let mut fours = [self.a.as_ptr(); 4];
            for (four, a) in fours.iter_mut().enumerate().take(MR.div_ceil(4)) {
                *a = opaque(self.a.as_ptr().wrapping_add((row + 4 * four) * a_row + k * a_k));
            }
            for next in 0..COUNT {
                let b = self.b.as_ptr().add((k + next) * b_k);
                let mut panel = [s.splat(0.0); NR];
                for (n, value) in panel.iter_mut().enumerate() {
                    *value = s.load(b.add(n * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = match S::SPLATS_FROM_MEMORY {
                        true => fours[r / 4].add(r % 4 * a_row + next * a_k),
                        false => self.a.as_ptr().add((row + r) * a_row + (k + next) * a_k),
                    };
                    let value = s.splat(*a);
                    for n in 0..NR {
                        sums[n] = s.mul_add(value, panel[n], sums[n]);
                    }
                }
            }
        }
    }
}
