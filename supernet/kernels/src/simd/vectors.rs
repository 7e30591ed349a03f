//! What kernels compute with: vectors of an instruction set.

use crate::buffers::Unwritten;
use std::ops::Range;

/// Vectors of f32, and of as many i32. A value is the proof that the CPU has the instruction set.
pub(crate) trait Simd: Copy {
    type V: Copy;
    /// As many i32 as `V` has floats.
    type I: Copy;
    const LANES: usize;
    /// Accumulators of a register tile that leave registers for a few other vectors: 12 of 16, 24 of 32; 4 for the
    /// portable vectors, whose large unrolled tiles would take minutes to compile and gain little speed.
    const ACCUMULATORS: usize;
    /// Whether a multiply-add broadcasts its operand from memory. Loads and registers for addresses are then scarce:
    /// see [`opaque`].
    const SPLATS_FROM_MEMORY: bool = false;
    /// Whether [`store_bytes`](Self::store_bytes) reads lanes as unsigned numbers and stores 255 for those above. That
    /// covers what [`to_nearest`](Self::to_nearest) gives for floats that are too large, with a zero point added.
    const BYTES_SATURATE: bool = false;
    /// Values of a word, whose products [`dot`](Self::dot) sums: four bytes, or two numbers of 16 bits, for which AVX2
    /// has an exact instruction.
    const WORD_VALUES: usize = 4;
    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `a > b`, otherwise zero.
    fn where_above(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// `a * b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Prefetches the cache line at `p`, into L1 where it is large, otherwise into L2. Any address is allowed: a
    /// prefetch reads nothing and cannot fault.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}

    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` floats must be readable at `p`, which may be unaligned.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` floats must be writable at `p`, which may be unaligned.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Loads half a vector into both halves.
    ///
    /// # Safety
    /// `LANES / 2` floats must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_twice(self, p: *const f32) -> Self::V {
        let (mut values, half) = ([0.0; 16], Self::LANES / 2);
        // SAFETY: half of `LANES <= 16` floats are readable at `p` by the contract, and `values` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), half);
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr().add(half), half);
            self.load(values.as_ptr())
        }
    }
    /// The lower half of `low` and the upper half of `high`.
    #[inline(always)]
    fn join_halves(self, low: Self::V, high: Self::V) -> Self::V {
        let (mut values, mut upper, half) = ([0.0; 16], [0.0; 16], Self::LANES / 2);
        self.write(&mut values, low);
        self.write(&mut upper, high);
        values[half..Self::LANES].copy_from_slice(&upper[half..Self::LANES]);
        self.read(&values)
    }
    /// The upper half, as the lower one; the other lanes are arbitrary.
    #[inline(always)]
    fn upper_half(self, v: Self::V) -> Self::V {
        let mut values = [0.0; 32];
        self.write(&mut values, v);
        self.read(&values[Self::LANES / 2..])
    }
    /// Loads the first `count` floats at `p`, fewer than a whole vector; the other lanes are zero.
    ///
    /// # Safety
    /// `count < LANES`, and `count` floats must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, count: usize) -> Self::V {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are readable at `p` by the contract, and `values` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), count);
            self.load(values.as_ptr())
        }
    }
    /// Stores the first `count` lanes, fewer than a whole vector.
    ///
    /// # Safety
    /// `count < LANES`, and `count` floats must be writable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: Self::V, count: usize) {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are writable at `p` by the contract, and `values` holds 16.
        unsafe {
            self.store(values.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(values.as_ptr(), p, count);
        }
    }
    /// Loads the first `count` floats at `p`, at most a whole vector; the other lanes are zero.
    ///
    /// # Safety
    /// `count` floats, or `LANES` if that is fewer, must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_up_to(self, p: *const f32, count: usize) -> Self::V {
        // SAFETY: `count` floats are readable at `p` by the contract; a whole vector is loaded only where `count`
        // covers it.
        unsafe { if count >= Self::LANES { self.load(p) } else { self.load_first(p, count) } }
    }
    /// Stores the first `count` lanes, at most a whole vector.
    ///
    /// # Safety
    /// `count` floats, or `LANES` if that is fewer, must be writable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, v: Self::V, count: usize) {
        // SAFETY: `count` floats are writable at `p` by the contract; a whole vector is stored only where `count`
        // covers it.
        unsafe { if count >= Self::LANES { self.store(p, v) } else { self.store_first(p, v, count) } }
    }
    /// Loads the first values, at most a whole vector; lanes beyond the values are zero.
    #[inline(always)]
    fn read(self, values: &[f32]) -> Self::V {
        // SAFETY: as many floats as `values` holds are readable.
        unsafe { self.load_up_to(values.as_ptr(), values.len()) }
    }
    /// Stores the first lanes, as many as `values` has room for.
    #[inline(always)]
    fn write(self, values: &mut [f32], v: Self::V) {
        // SAFETY: as many floats as `values` holds are writable, and `values` is mutably borrowed.
        unsafe { self.store_up_to(values.as_mut_ptr(), v, values.len()) }
    }
    /// [`write`](Self::write) to floats that may not be written yet.
    #[inline(always)]
    fn write_new(self, values: &mut Unwritten, v: Self::V) {
        // SAFETY: as many floats as `values` holds are writable, and `values` is mutably borrowed.
        unsafe { self.store_up_to(values.as_mut_ptr().cast(), v, values.len()) }
    }
    fn splat_i32(self, x: i32) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Adds to each lane of `sum` the products of the values of the lane's word: from 0 to 255 of `x`, from -128 to 127
    /// of `w`. Exact: no product or sum of products saturates.
    fn dot(self, sum: Self::I, x: Self::I, w: Self::I) -> Self::I;
    /// Drops the lowest value of each lane's word and puts `next`, from 0 to 255 in each lane, above the others.
    fn shift_in(self, word: Self::I, next: Self::I) -> Self::I;
    /// Loads a vector of words of weights, each of [`WORD_VALUES`](Self::WORD_VALUES) signed bytes.
    ///
    /// # Safety
    /// `LANES * WORD_VALUES` bytes must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_weights(self, p: *const i8) -> Self::I {
        const { assert!(Self::WORD_VALUES == 4) };
        // SAFETY: `LANES` words of four bytes are readable at `p` by the contract.
        unsafe { self.load_i32(p.cast()) }
    }
    /// The nearest floats; ties to even.
    fn to_floats(self, x: Self::I) -> Self::V;
    /// The nearest integers, ties to even, of floats below 2^30; the least integer for those below it.
    fn to_nearest(self, x: Self::V) -> Self::I;
    /// Loads a vector of words.
    ///
    /// # Safety
    /// `LANES` words must be readable at `p`, which may be unaligned.
    unsafe fn load_i32(self, p: *const i32) -> Self::I;
    /// Stores a vector of words.
    ///
    /// # Safety
    /// `LANES` words must be writable at `p`, which may be unaligned.
    unsafe fn store_i32(self, p: *mut i32, v: Self::I);
    /// Loads `LANES` unsigned bytes, one per lane.
    ///
    /// # Safety
    /// `LANES` bytes must be readable at `p`.
    unsafe fn load_bytes(self, p: *const u8) -> Self::I;
    /// Stores `LANES` lanes as bytes, each from 0 to 255 unless [`BYTES_SATURATE`](Self::BYTES_SATURATE).
    ///
    /// # Safety
    /// `LANES` bytes must be writable at `p`.
    unsafe fn store_bytes(self, p: *mut u8, v: Self::I);
    /// Stores `LANES` lanes as values of words: bytes, as [`store_bytes`](Self::store_bytes) does, or these widened.
    ///
    /// # Safety
    /// `4 / WORD_VALUES * LANES` bytes must be writable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn store_values(self, p: *mut u8, v: Self::I) {
        const { assert!(Self::WORD_VALUES == 4) };
        // SAFETY: the contract's bytes, one per lane.
        unsafe { self.store_bytes(p, v) }
    }
    /// Stores the first lanes as [`store_values`](Self::store_values) does, as many as `values` has room for.
    #[inline(always)]
    fn write_values(self, values: &mut [u8], v: Self::I) {
        if values.len() >= 4 / Self::WORD_VALUES * Self::LANES {
            // SAFETY: the bytes of a whole vector are writable.
            return unsafe { self.store_values(values.as_mut_ptr(), v) };
        }
        if Self::WORD_VALUES == 4 {
            return self.write_bytes(values, v);
        }
        let mut all = [0; 64];
        // SAFETY: `all` holds `4 * LANES <= 64` bytes.
        unsafe { self.store_values(all.as_mut_ptr(), v) };
        values.copy_from_slice(&all[..values.len()]);
    }
    /// [`load_twice`](Self::load_twice) of words.
    ///
    /// # Safety
    /// `LANES / 2` words must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_twice_i32(self, p: *const i32) -> Self::I {
        let (mut words, half) = ([0; 16], Self::LANES / 2);
        // SAFETY: half of `LANES <= 16` words are readable at `p` by the contract, and `words` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, words.as_mut_ptr(), half);
            std::ptr::copy_nonoverlapping(p, words.as_mut_ptr().add(half), half);
            self.load_i32(words.as_ptr())
        }
    }
    /// [`join_halves`](Self::join_halves) of words.
    #[inline(always)]
    fn join_halves_i32(self, low: Self::I, high: Self::I) -> Self::I {
        let (mut words, mut upper, half) = ([0; 16], [0; 16], Self::LANES / 2);
        // SAFETY: both hold `16 >= LANES` words.
        unsafe {
            self.store_i32(words.as_mut_ptr(), low);
            self.store_i32(upper.as_mut_ptr(), high);
        }
        words[half..].copy_from_slice(&upper[half..]);
        self.read_i32(&words)
    }
    /// [`upper_half`](Self::upper_half) of words.
    #[inline(always)]
    fn upper_half_i32(self, v: Self::I) -> Self::I {
        let mut words = [0; 32];
        // SAFETY: `words` holds more than `LANES` words.
        unsafe { self.store_i32(words.as_mut_ptr(), v) };
        self.read_i32(&words[Self::LANES / 2..])
    }
    /// Loads the first words, at most a whole vector; lanes beyond the words are zero.
    #[inline(always)]
    fn read_i32(self, words: &[i32]) -> Self::I {
        // SAFETY: a whole vector is loaded where `words` covers it, otherwise from `all`, which holds 16 words, of
        // which fewer than `LANES <= 16` are copied.
        unsafe {
            if words.len() >= Self::LANES {
                return self.load_i32(words.as_ptr());
            }
            let mut all = [0; 16];
            all[..words.len()].copy_from_slice(words);
            self.load_i32(all.as_ptr())
        }
    }
    /// Loads the first `count` bytes at `p`, fewer than a whole vector, one per lane; the other lanes are zero.
    ///
    /// # Safety
    /// `count < LANES`, and `count` bytes must be readable at `p`.
    #[inline(always)]
    unsafe fn load_first_bytes(self, p: *const u8, count: usize) -> Self::I {
        let mut all = [0; 16];
        // SAFETY: `count < LANES <= 16` bytes are readable at `p` by the contract, and `all` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), count);
            self.load_bytes(all.as_ptr())
        }
    }
    /// Stores the first `count` lanes, fewer than a whole vector, as [`store_bytes`](Self::store_bytes) does.
    ///
    /// # Safety
    /// `count < LANES`, and `count` bytes must be writable at `p`.
    #[inline(always)]
    unsafe fn store_first_bytes(self, p: *mut u8, v: Self::I, count: usize) {
        let mut all = [0; 16];
        // SAFETY: `count < LANES <= 16` bytes are writable at `p` by the contract, and `all` holds 16.
        unsafe {
            self.store_bytes(all.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, count);
        }
    }
    /// Loads the first `count` bytes at `p`, at most a whole vector, one per lane; the other lanes are zero.
    ///
    /// # Safety
    /// `count` bytes, or `LANES` if that is fewer, must be readable at `p`.
    #[inline(always)]
    unsafe fn load_bytes_up_to(self, p: *const u8, count: usize) -> Self::I {
        // SAFETY: `count` bytes are readable at `p` by the contract; a whole vector is loaded only where `count` covers
        // it.
        unsafe { if count >= Self::LANES { self.load_bytes(p) } else { self.load_first_bytes(p, count) } }
    }
    /// Stores the first `count` lanes, at most a whole vector, as [`store_bytes`](Self::store_bytes) does.
    ///
    /// # Safety
    /// `count` bytes, or `LANES` if that is fewer, must be writable at `p`.
    #[inline(always)]
    unsafe fn store_bytes_up_to(self, p: *mut u8, v: Self::I, count: usize) {
        // SAFETY: `count` bytes are writable at `p` by the contract; a whole vector is stored only where `count` covers
        // it.
        unsafe { if count >= Self::LANES { self.store_bytes(p, v) } else { self.store_first_bytes(p, v, count) } }
    }
    /// Loads the first bytes, at most a whole vector, one per lane; lanes beyond the bytes are zero.
    #[inline(always)]
    fn read_bytes(self, bytes: &[u8]) -> Self::I {
        // SAFETY: as many bytes as `bytes` holds are readable.
        unsafe { self.load_bytes_up_to(bytes.as_ptr(), bytes.len()) }
    }
    /// Stores the first lanes as [`store_bytes`](Self::store_bytes) does, as many as `bytes` has room for.
    #[inline(always)]
    fn write_bytes(self, bytes: &mut [u8], v: Self::I) {
        // SAFETY: as many bytes as `bytes` holds are writable, and `bytes` is mutably borrowed.
        unsafe { self.store_bytes_up_to(bytes.as_mut_ptr(), v, bytes.len()) }
    }
    /// Copies a block of 8 x 8 floats transposed; rows of `source` are `source_stride` apart, rows of `target`
    /// `target_stride`.
    #[inline(always)]
    fn transpose(self, source: &[f32], source_stride: usize, target: &mut [f32], target_stride: usize) {
        for row in 0..8 {
            for column in 0..8 {
                target[column * target_stride + row] = source[row * source_stride + column];
            }
        }
    }
}

/// Ranges of `0..n` that a vector of `S` covers; the last may be shorter.
#[inline(always)]
pub(crate) fn vectors<S: Simd>(_: S, n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(S::LANES).map(move |start| start..n.min(start + S::LANES))
}

/// Hides a pointer's provenance from the compiler, so that neighbouring rows are addressed relative to `p`. Otherwise
/// LLVM keeps a pointer per row, spills most of them and reloads each at every use.
#[inline(always)]
pub(crate) fn opaque(p: *const f32) -> *const f32 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut p = p;
        #[allow(clippy::pointers_in_nomem_asm_block)] // nothing is read or written through it here
        // SAFETY: the assembly is a comment: no instruction reads or writes anything.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags))
        };
        p
    }
    #[cfg(not(target_arch = "x86_64"))]
    p
}

#[cfg(test)]
mod tests {
    use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points};

    /// Halves of `low` and `high`, as numbers and as words: loaded twice, joined, and the upper one.
    struct Halves {
        low: [f32; 16],
        high: [f32; 16],
    }

    impl Kernel for Halves {
        type Output = [[f32; 16]; 6];
        entry_points!();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [[f32; 16]; 6] {
            let [mut twice, mut joined, mut upper, mut words_twice, mut words_joined, mut words_upper] = [[0.0; 16]; 6];
            let (low, high) = (s.read(&self.low), s.read(&self.high));
            // SAFETY: both arrays hold half a vector.
            s.write(&mut twice, unsafe { s.load_twice(self.low.as_ptr()) });
            s.write(&mut joined, s.join_halves(low, high));
            s.write(&mut upper, s.upper_half(high));
            let (low, high) = (self.low.map(|x| x as i32), self.high.map(|x| x as i32));
            // SAFETY: as above.
            s.write(&mut words_twice, s.to_floats(unsafe { s.load_twice_i32(low.as_ptr()) }));
            let (low, high) = (s.read_i32(&low), s.read_i32(&high));
            s.write(&mut words_joined, s.to_floats(s.join_halves_i32(low, high)));
            s.write(&mut words_upper, s.to_floats(s.upper_half_i32(high)));
            [twice, joined, upper, words_twice, words_joined, words_upper]
        }
    }

    #[test]
    fn halves_are_loaded_joined_and_taken() {
        let (low, high) = (std::array::from_fn(|i| i as f32), std::array::from_fn(|i| 100.0 + i as f32));
        let (lanes, set) = (InstructionSet::active().lanes(), InstructionSet::active().name());
        let half = lanes / 2;
        let found = dispatch(Halves { low, high });
        for [twice, joined, upper] in [[found[0], found[1], found[2]], [found[3], found[4], found[5]]] {
            assert_eq!(twice[..lanes], [&low[..half], &low[..half]].concat(), "{set}");
            assert_eq!(joined[..lanes], [&low[..half], &high[half..lanes]].concat(), "{set}");
            assert_eq!(upper[..half], high[half..lanes], "{set}");
        }
    }
}
