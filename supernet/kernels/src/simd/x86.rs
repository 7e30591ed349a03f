//! Vectors of x86-64.

use super::{Simd, intrinsics, x86_features};
use std::arch::x86_64::*;

/// Proves AVX2 with fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Proves AVX2 with dot products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Vnni(());

/// Proves AVX-512 (foundation, bytes and words) and all that [`Avx2`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proves AVX-512 with dot products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Avx2Vnni {
    /// The token of the set without dot products.
    pub(super) fn without_dot(self) -> Avx2 {
        Avx2(())
    }
}

impl Avx512Vnni {
    /// The token of the set without dot products.
    pub(super) fn without_dot(self) -> Avx512 {
        Avx512(())
    }
}

macro_rules! detection {
    ($token:ident, $entry:ident, $($feature:tt),+) => {
        impl $token {
            /// The token, if this CPU has the features.
            pub(super) fn detect() -> Option<$token> {
                ($(is_x86_feature_detected!($feature))&&+).then_some($token(()))
            }
        }
    };
}
x86_features!(Avx2, detection);
x86_features!(Avx2Vnni, detection);
x86_features!(Avx512, detection);
x86_features!(Avx512Vnni, detection);

macro_rules! avx2_vectors {
    ($token:ident, $values:literal, $dot:path, $shift_in:path, $load_weights:path, $store_values:path) => {
        impl Simd for $token {
            type V = __m256;
            type I = __m256i;
            const LANES: usize = 8;
            const ACCUMULATORS: usize = 12;
            const WORD_VALUES: usize = $values;
            intrinsics! {
                fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
                fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
                fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
                fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
                fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
                fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
                fn where_above(a: __m256, b: __m256, v: __m256) -> __m256 {
                    _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b), v)
                }
                fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
                fn prefetch(p: *const f32) -> () { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
                fn transpose(source: &[f32], source_stride: usize, target: &mut [f32], target_stride: usize) -> () {
                    transpose(source, source_stride, target, target_stride)
                }
                fn splat_i32(x: i32) -> __m256i { _mm256_set1_epi32(x) }
                fn add_i32(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
                fn dot(sum: __m256i, x: __m256i, w: __m256i) -> __m256i { $dot(sum, x, w) }
                fn shift_in(word: __m256i, next: __m256i) -> __m256i { $shift_in(word, next) }
                fn to_floats(x: __m256i) -> __m256 { _mm256_cvtepi32_ps(x) }
                fn to_nearest(x: __m256) -> __m256i { _mm256_cvtps_epi32(x) }
                pointers:
                fn load_i32(p: *const i32) -> __m256i { _mm256_loadu_si256(p.cast()) }
                fn load_weights(p: *const i8) -> __m256i { $load_weights(p) }
                fn store_i32(p: *mut i32, v: __m256i) -> () { _mm256_storeu_si256(p.cast(), v) }
                fn load_bytes(p: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
                fn store_bytes(p: *mut u8, v: __m256i) -> () { store_bytes(p, v) }
                fn store_values(p: *mut u8, v: __m256i) -> () { $store_values(p, v) }
                fn load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
                fn store(p: *mut f32, v: __m256) -> () { _mm256_storeu_ps(p, v) }
                fn load_first(p: *const f32, count: usize) -> __m256 { _mm256_maskload_ps(p, first(count)) }
                // In halves, 4, 2 and 1 floats for the set bits of `count`: a masked store takes dozens of cycles on
                // some processors.
                fn store_first(p: *mut f32, v: __m256, count: usize) -> () {
                    let mut p = p;
                    let mut half = _mm256_castps256_ps128(v);
                    if count & 4 != 0 {
                        _mm_storeu_ps(p, half);
                        p = p.add(4);
                        half = _mm256_extractf128_ps::<1>(v);
                    }
                    if count & 2 != 0 {
                        // Unlike the store of a double, this one need not be aligned.
                        _mm_storel_epi64(p.cast(), _mm_castps_si128(half));
                        p = p.add(2);
                        half = _mm_movehl_ps(half, half);
                    }
                    if count & 1 != 0 {
                        _mm_store_ss(p, half);
                    }
                }
            }
        }
    };
}
avx2_vectors!(Avx2, 2, dot_of_pairs, shift_in_pairs, load_pairs, store_shorts);
avx2_vectors!(Avx2Vnni, 4, _mm256_dpbusd_avx_epi32, shift_in_bytes, load_words, store_bytes);

/// [`Simd::dot`] of pairs of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_of_pairs(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(x, w))
}

/// [`Simd::shift_in`] of pairs of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn shift_in_pairs(word: __m256i, next: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi32::<16>(word), _mm256_slli_epi32::<16>(next))
}

/// [`Simd::shift_in`] of bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn shift_in_bytes(word: __m256i, next: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi32::<8>(word), _mm256_slli_epi32::<24>(next))
}

/// [`Simd::load_weights`] of pairs.
///
/// # Safety
/// 16 bytes must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_pairs(p: *const i8) -> __m256i {
    // SAFETY: the contract's bytes; the load needs no alignment.
    unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
}

/// [`Simd::load_weights`] of words of four bytes.
///
/// # Safety
/// 32 bytes must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_words(p: *const i8) -> __m256i {
    // SAFETY: the contract's bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

macro_rules! avx512_vectors {
    ($token:ident, $dot:path) => {
        impl Simd for $token {
            type V = __m512;
            type I = __m512i;
            const LANES: usize = 16;
            const ACCUMULATORS: usize = 24;
            const SPLATS_FROM_MEMORY: bool = true;
            // As unsigned numbers: floats that are too large become 2^31.
            const BYTES_SATURATE: bool = true;
            intrinsics! {
                fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
                fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
                fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
                fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
                fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
                fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
                fn where_above(a: __m512, b: __m512, v: __m512) -> __m512 {
                    _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), v)
                }
                fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
                fn join_halves(low: __m512, high: __m512) -> __m512 { _mm512_mask_blend_ps(0xff00, low, high) }
                fn upper_half(v: __m512) -> __m512 {
                    _mm512_castpd_ps(_mm512_castpd256_pd512(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))))
                }
                fn prefetch(p: *const f32) -> () { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
                fn transpose(source: &[f32], source_stride: usize, target: &mut [f32], target_stride: usize) -> () {
                    transpose(source, source_stride, target, target_stride)
                }
                fn splat_i32(x: i32) -> __m512i { _mm512_set1_epi32(x) }
                fn add_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
                fn dot(sum: __m512i, x: __m512i, w: __m512i) -> __m512i { $dot(sum, x, w) }
                fn shift_in(word: __m512i, next: __m512i) -> __m512i {
                    _mm512_or_si512(_mm512_srli_epi32::<8>(word), _mm512_slli_epi32::<24>(next))
                }
                fn join_halves_i32(low: __m512i, high: __m512i) -> __m512i {
                    _mm512_mask_blend_epi32(0xff00, low, high)
                }
                fn upper_half_i32(v: __m512i) -> __m512i {
                    _mm512_castsi256_si512(_mm512_extracti64x4_epi64::<1>(v))
                }
                fn to_floats(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
                fn to_nearest(x: __m512) -> __m512i { _mm512_cvtps_epi32(x) }
                pointers:
                fn load_i32(p: *const i32) -> __m512i { _mm512_loadu_si512(p.cast()) }
                fn load_twice_i32(p: *const i32) -> __m512i {
                    _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()))
                }
                fn store_i32(p: *mut i32, v: __m512i) -> () { _mm512_storeu_si512(p.cast(), v) }
                fn load_bytes(p: *const u8) -> __m512i { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
                fn store_bytes(p: *mut u8, v: __m512i) -> () {
                    _mm_storeu_si128(p.cast(), _mm512_cvtusepi32_epi8(v))
                }
                // As for floats, half a vector is the frequent case.
                fn load_first_bytes(p: *const u8, count: usize) -> __m512i {
                    _mm512_cvtepu8_epi32(match count {
                        8 => _mm_loadl_epi64(p.cast()),
                        _ => _mm512_castsi512_si128(_mm512_maskz_loadu_epi8((1 << count) - 1, p.cast())),
                    })
                }
                fn store_first_bytes(p: *mut u8, v: __m512i, count: usize) -> () {
                    let bytes = _mm512_cvtusepi32_epi8(v);
                    match count {
                        8 => _mm_storel_epi64(p.cast(), bytes),
                        _ => _mm512_mask_storeu_epi8(p.cast(), (1 << count) - 1, _mm512_castsi128_si512(bytes)),
                    }
                }
                fn load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
                fn load_twice(p: *const f32) -> __m512 {
                    _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_loadu_pd(p.cast())))
                }
                fn store(p: *mut f32, v: __m512) -> () { _mm512_storeu_ps(p, v) }
                fn load_first(p: *const f32, count: usize) -> __m512 {
                    match count {
                        8 => _mm512_zextps256_ps512(_mm256_loadu_ps(p)),
                        _ => _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, p),
                    }
                }
                // Half a vector, the frequent case (channels are multiples of 8), is stored without a mask: a load
                // cannot be forwarded from a masked store that is still in the store buffer.
                fn store_first(p: *mut f32, v: __m512, count: usize) -> () {
                    match count {
                        8 => _mm256_storeu_ps(p, _mm512_castps512_ps256(v)),
                        _ => _mm512_mask_storeu_ps(p, ((1u32 << count) - 1) as u16, v),
                    }
                }
            }
        }
    };
}
avx512_vectors!(Avx512, widened_dot);
avx512_vectors!(Avx512Vnni, _mm512_dpbusd_epi32);

/// The lanes as bytes, in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
fn to_bytes(v: __m256i) -> __m128i {
    let shorts = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    _mm_packus_epi16(shorts, shorts)
}

/// [`Simd::store_bytes`], which is [`Simd::store_values`] where words have four values.
///
/// # Safety
/// 8 bytes must be writable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_bytes(p: *mut u8, v: __m256i) {
    // SAFETY: the contract's bytes; the store needs no alignment.
    unsafe { _mm_storel_epi64(p.cast(), to_bytes(v)) }
}

/// [`Simd::store_values`] of pairs.
///
/// # Safety
/// 16 bytes must be writable at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_shorts(p: *mut u8, v: __m256i) {
    // SAFETY: the contract's bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(p.cast(), _mm_cvtepu8_epi16(to_bytes(v))) }
}

/// [`Simd::dot`] without an instruction for it: even and odd bytes as 16-bit numbers, whose products cannot saturate.
#[inline]
#[target_feature(enable = "avx512bw")]
fn widened_dot(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(w));
    let even = _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0xff)), even);
    let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(x), _mm512_srai_epi16::<8>(w));
    _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
}

/// Copies a block of 8 x 8 floats transposed, as [`Simd::transpose`] says.
#[inline]
#[target_feature(enable = "avx")]
fn transpose(source: &[f32], source_stride: usize, target: &mut [f32], target_stride: usize) {
    assert!(source.len() >= 7 * source_stride + 8 && target.len() >= 7 * target_stride + 8);
    let (source, target) = (source.as_ptr(), target.as_mut_ptr());
    // SAFETY: 8 floats from the start of each of 8 rows exist in both slices (asserted above; `target` is mutably
    // borrowed), and each access covers 8 floats of a row numbered below 8.
    let load = |row: usize| unsafe { _mm256_loadu_ps(source.add(row * source_stride)) };
    let mut pairs = [_mm256_setzero_ps(); 8];
    for two in 0..4 {
        let (a, b) = (load(2 * two), load(2 * two + 1));
        pairs[2 * two] = _mm256_unpacklo_ps(a, b);
        pairs[2 * two + 1] = _mm256_unpackhi_ps(a, b);
    }
    // Four rows each, of columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    let mut fours = [[_mm256_setzero_ps(); 4]; 2];
    for (half, fours) in fours.iter_mut().enumerate() {
        for which in 0..2 {
            let (a, b) = (pairs[4 * half + which], pairs[4 * half + 2 + which]);
            fours[2 * which] = _mm256_shuffle_ps::<0x44>(a, b);
            fours[2 * which + 1] = _mm256_shuffle_ps::<0xEE>(a, b);
        }
    }
    let [upper, lower] = fours;
    for (column, (a, b)) in upper.into_iter().zip(lower).enumerate() {
        // SAFETY: as for `load`: rows `column` and `column + 4` are numbered below 8.
        unsafe {
            _mm256_storeu_ps(target.add(column * target_stride), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(target.add((column + 4) * target_stride), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}

/// A mask of the first `count` of eight lanes.
#[inline]
#[target_feature(enable = "avx")]
fn first(count: usize) -> __m256i {
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the offset is between 0 and 8, so eight of the sixteen numbers are read.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count.min(8)).cast()) }
}
