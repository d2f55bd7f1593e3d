// Vectors of one instruction set, for the .inl files: include it with SSD_LEVEL defined as generic, avx2, avx512
// or avx512bf16, whose vectors and dot products are those of avx512, bitwise. Everything lives in ssd::cpu::<level>,
// because an inline function or a template of std:: compiled here with AVX-512 could be linked into the plain path:
// these files use neither. It is long because the same vector stands here once for each level, side by side.
//
// The canonical dot product. Lane l of one accumulator sums x[d] w[d] for d = l, l + W, l + 2W, ... in that order
// (a fused multiply-add where the set has one, W lanes a vector), and the lanes are added as a tree: l with l + W/2,
// then l + W/4, ... Every score that decides a winner and every value is this number, so it does not depend on the
// tile, the thread or the path that computed it. It is fixed per instruction set, not between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef SSD_LEVEL
#error "define SSD_LEVEL before including simd/simd.h"
#endif
#define SSD_INLINE inline __attribute__((always_inline))

namespace ssd::cpu {

// Storage types of 16 bits; arithmetic is always fp32.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

namespace SSD_LEVEL {

SSD_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
SSD_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// ---- Scalars: widening and rounding (to nearest even), the same at every level.
SSD_INLINE float to_acc(float x) { return x; }
SSD_INLINE double to_acc(double x) { return x; }
SSD_INLINE float to_acc(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
SSD_INLINE float to_acc(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24f));
  return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
}
SSD_INLINE void from_acc(float x, float* y) { *y = x; }
SSD_INLINE void from_acc(double x, double* y) { *y = x; }
SSD_INLINE void from_acc(float x, BFloat16* y) {
  const uint32_t bits = float_to_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  y->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
SSD_INLINE void from_acc(float x, Half* y) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    out = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal, rounded by the addition
    out = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    out = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  y->bits = static_cast<uint16_t>(sign | out);
}

// ---- Vectors. Vec<float> and Vec<double>: load, load_partial (lanes from n on are 0), store, fma, reduce_add, ...
template <class T>
struct Vec;

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int kWidth = 16;
  __m512 v;
  static SSD_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static SSD_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static SSD_INLINE __mmask16 head(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static SSD_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static SSD_INLINE Vec load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(head(n), p)}; }
  static SSD_INLINE Vec load(const BFloat16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
  static SSD_INLINE Vec load_partial(const BFloat16* p, int n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(head(n), p));
  }
  static SSD_INLINE Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
  static SSD_INLINE Vec load_partial(const Half* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(head(n), p))};
  }
  static SSD_INLINE Vec widen_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  SSD_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  SSD_INLINE void store_partial(float* p, int n) const { _mm512_mask_storeu_ps(p, head(n), v); }
};
SSD_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Bit l is set where lane l of a > b, or where either is NaN.
SSD_INLINE uint32_t not_le_mask(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLE_UQ); }
SSD_INLINE uint32_t gt_mask(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
SSD_INLINE float reduce_add(Vec<float> a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 eighth = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(eighth, _mm_shuffle_ps(eighth, eighth, 1)));
}

// The reduction of many vectors at once: the tree of reduce_add, its steps shared by folding two vectors into one.
// fold<h>(a, b) adds each lane to the one h away, and keeps a's sums in the places that b's sums leave free.
SSD_INLINE __m512 fold8(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}
SSD_INLINE __m512 fold4(__m512 a, __m512 b) {
  const __m512 crossed = _mm512_mask_blend_ps(0xf0f0, b, a);
  return _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, a, b), _mm512_shuffle_f32x4(crossed, crossed, 0xb1));
}
SSD_INLINE __m512 fold2(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
}
SSD_INLINE __m512 fold1(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, a, b), _mm512_permute_ps(_mm512_mask_blend_ps(0xaaaa, b, a), 0xb1));
}
// out[l] = reduce_add(s[l]), for the group sizes that one vector of results serves.
SSD_INLINE void reduce_add_16(const Vec<float>* s, float* out) {
  __m512 quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = fold4(fold8(s[i].v, s[i + 8].v), fold8(s[i + 4].v, s[i + 12].v));
  _mm512_storeu_ps(out, fold1(fold2(quarter[0], quarter[2]), fold2(quarter[1], quarter[3])));
}
SSD_INLINE void reduce_add_8(const Vec<float>* s, float* out) {
  const __m512 even = fold4(fold8(s[0].v, s[4].v), fold8(s[2].v, s[6].v));
  const __m512 odd = fold4(fold8(s[1].v, s[5].v), fold8(s[3].v, s[7].v));
  const __m512 pairs = fold2(even, odd), sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, sums)));
}
SSD_INLINE void reduce_add_4(const Vec<float>* s, float* out) {
  const __m512 lanes = fold4(fold8(s[0].v, s[2].v), fold8(s[1].v, s[3].v));
  const __m512 pairs = _mm512_add_ps(lanes, _mm512_permute_ps(lanes, 0x4e));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums)));
}

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  __m512d v;
  static SSD_INLINE Vec zero() { return {_mm512_setzero_pd()}; }
  static SSD_INLINE Vec set1(double x) { return {_mm512_set1_pd(x)}; }
  static SSD_INLINE __mmask8 head(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static SSD_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static SSD_INLINE Vec load_partial(const double* p, int n) { return {_mm512_maskz_loadu_pd(head(n), p)}; }
  SSD_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  SSD_INLINE void store_partial(double* p, int n) const { _mm512_mask_storeu_pd(p, head(n), v); }
};
SSD_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
SSD_INLINE uint32_t not_le_mask(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NLE_UQ); }
SSD_INLINE uint32_t gt_mask(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ); }
SSD_INLINE double reduce_add(Vec<double> a) {
  const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d quarter = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  return _mm_cvtsd_f64(_mm_add_sd(quarter, _mm_unpackhi_pd(quarter, quarter)));
}

SSD_INLINE __m512d fold4(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_mask_blend_pd(0xf0, a, b), _mm512_shuffle_f64x2(a, b, 0x4e));
}
SSD_INLINE __m512d fold2(__m512d a, __m512d b) {
  const __m512d crossed = _mm512_mask_blend_pd(0xcc, b, a);
  return _mm512_add_pd(_mm512_mask_blend_pd(0xcc, a, b), _mm512_shuffle_f64x2(crossed, crossed, 0xb1));
}
SSD_INLINE __m512d fold1(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_mask_blend_pd(0xaa, a, b), _mm512_shuffle_pd(a, b, 0x55));
}
SSD_INLINE void reduce_add_8(const Vec<double>* s, double* out) {
  const __m512d even = fold2(fold4(s[0].v, s[4].v), fold4(s[2].v, s[6].v));
  const __m512d odd = fold2(fold4(s[1].v, s[5].v), fold4(s[3].v, s[7].v));
  _mm512_storeu_pd(out, fold1(even, odd));
}

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  __m256 v;
  static SSD_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static SSD_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static SSD_INLINE __m256i head(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static SSD_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static SSD_INLINE Vec load_partial(const float* p, int n) { return {_mm256_maskload_ps(p, head(n))}; }
  static SSD_INLINE __m128i load16(const void* p, int n) {
    alignas(16) uint16_t lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < n; ++i) lanes[i] = static_cast<const uint16_t*>(p)[i];
    return _mm_load_si128((const __m128i*)lanes);
  }
  static SSD_INLINE Vec widen_bf16(__m128i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  static SSD_INLINE Vec load(const BFloat16* p) { return widen_bf16(_mm_loadu_si128((const __m128i*)p)); }
  static SSD_INLINE Vec load_partial(const BFloat16* p, int n) { return widen_bf16(load16(p, n)); }
  static SSD_INLINE Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
  static SSD_INLINE Vec load_partial(const Half* p, int n) { return {_mm256_cvtph_ps(load16(p, n))}; }
  SSD_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  SSD_INLINE void store_partial(float* p, int n) const { _mm256_maskstore_ps(p, head(n), v); }
};
SSD_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
SSD_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SSD_INLINE uint32_t not_le_mask(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLE_UQ)));
}
SSD_INLINE uint32_t gt_mask(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
SSD_INLINE float reduce_add(Vec<float> a) {
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 eighth = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(eighth, _mm_shuffle_ps(eighth, eighth, 1)));
}

// As in the AVX-512 part: fold<h>(a, b) adds each lane to the one h away, for two vectors at once.
SSD_INLINE __m256 fold4(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
}
SSD_INLINE __m256 fold2(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
}
SSD_INLINE __m256 fold1(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_blend_ps(a, b, 0xaa), _mm256_permute_ps(_mm256_blend_ps(b, a, 0xaa), 0xb1));
}
SSD_INLINE void reduce_add_8(const Vec<float>* s, float* out) {
  __m256 half[4];
  for (int i = 0; i < 4; ++i) half[i] = fold4(s[i].v, s[i + 4].v);
  _mm256_storeu_ps(out, fold1(fold2(half[0], half[2]), fold2(half[1], half[3])));
}
SSD_INLINE void reduce_add_4(const Vec<float>* s, float* out) {
  const __m256 even = fold4(s[0].v, s[2].v), odd = fold4(s[1].v, s[3].v);
  const __m256 pairs = fold2(even, odd), sums = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0xb1));
  const __m256 low = _mm256_permute_ps(sums, 0x08);  // lanes 0 and 2 of each half
  _mm_storeu_ps(out, _mm_movelh_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1)));
}

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  __m256d v;
  static SSD_INLINE Vec zero() { return {_mm256_setzero_pd()}; }
  static SSD_INLINE Vec set1(double x) { return {_mm256_set1_pd(x)}; }
  static SSD_INLINE __m256i head(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static SSD_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static SSD_INLINE Vec load_partial(const double* p, int n) { return {_mm256_maskload_pd(p, head(n))}; }
  SSD_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  SSD_INLINE void store_partial(double* p, int n) const { _mm256_maskstore_pd(p, head(n), v); }
};
SSD_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
SSD_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
SSD_INLINE uint32_t not_le_mask(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_NLE_UQ)));
}
SSD_INLINE uint32_t gt_mask(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)));
}
SSD_INLINE double reduce_add(Vec<double> a) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

SSD_INLINE void reduce_add_4(const Vec<double>* s, double* out) {
  __m256d half[2];
  for (int i = 0; i < 2; ++i)
    half[i] = _mm256_add_pd(_mm256_blend_pd(s[i].v, s[i + 2].v, 0xc), _mm256_permute2f128_pd(s[i].v, s[i + 2].v, 0x21));
  _mm256_storeu_pd(out,
                   _mm256_add_pd(_mm256_blend_pd(half[0], half[1], 0xa), _mm256_shuffle_pd(half[0], half[1], 0x5)));
}

#else  // generic: plain loops of fixed length, which a compiler vectorises with what the base machine has

template <class T>
struct PlainVec {
  static constexpr int kWidth = 32 / static_cast<int>(sizeof(T));
  T v[kWidth];
};
template <>
struct Vec<float> : PlainVec<float> {
  using A = float;
#define SSD_PLAIN_VEC                                                   \
  static SSD_INLINE Vec zero() { return set1(0); }                      \
  static SSD_INLINE Vec set1(A x) {                                     \
    Vec r;                                                              \
    for (int i = 0; i < kWidth; ++i) r.v[i] = x;                        \
    return r;                                                           \
  }                                                                     \
  template <class S>                                                    \
  static SSD_INLINE Vec load(const S* p) {                              \
    Vec r;                                                              \
    for (int i = 0; i < kWidth; ++i) r.v[i] = to_acc(p[i]);             \
    return r;                                                           \
  }                                                                     \
  template <class S>                                                    \
  static SSD_INLINE Vec load_partial(const S* p, int n) {               \
    Vec r;                                                              \
    for (int i = 0; i < kWidth; ++i) r.v[i] = i < n ? to_acc(p[i]) : 0; \
    return r;                                                           \
  }                                                                     \
  SSD_INLINE void store(A* p) const { std::memcpy(p, v, sizeof(v)); }   \
  SSD_INLINE void store_partial(A* p, int n) const { std::memcpy(p, v, n * sizeof(A)); }
  SSD_PLAIN_VEC
};
template <>
struct Vec<double> : PlainVec<double> {
  using A = double;
  SSD_PLAIN_VEC
};
#undef SSD_PLAIN_VEC
#define SSD_PLAIN_OPERATION(name, expression)                     \
  template <class T>                                              \
  SSD_INLINE Vec<T> name(Vec<T> a, Vec<T> b) {                    \
    Vec<T> r;                                                     \
    for (int i = 0; i < Vec<T>::kWidth; ++i) r.v[i] = expression; \
    return r;                                                     \
  }
SSD_PLAIN_OPERATION(operator+, a.v[i] + b.v[i])
SSD_PLAIN_OPERATION(operator-, a.v[i] - b.v[i])
SSD_PLAIN_OPERATION(operator*, a.v[i] * b.v[i])
SSD_PLAIN_OPERATION(vmax, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
#undef SSD_PLAIN_OPERATION
SSD_INLINE float plain_fma(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
SSD_INLINE double plain_fma(double a, double b, double c) {
#ifdef __FP_FAST_FMA
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
template <class T>
SSD_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  for (int i = 0; i < Vec<T>::kWidth; ++i) c.v[i] = plain_fma(a.v[i], b.v[i], c.v[i]);
  return c;
}
template <class T>
SSD_INLINE uint32_t not_le_mask(Vec<T> a, Vec<T> b) {
  uint32_t mask = 0;
  for (int i = 0; i < Vec<T>::kWidth; ++i) mask |= static_cast<uint32_t>(!(a.v[i] <= b.v[i])) << i;
  return mask;
}
template <class T>
SSD_INLINE uint32_t gt_mask(Vec<T> a, Vec<T> b) {
  uint32_t mask = 0;
  for (int i = 0; i < Vec<T>::kWidth; ++i) mask |= static_cast<uint32_t>(a.v[i] > b.v[i]) << i;
  return mask;
}
template <class T>
SSD_INLINE T reduce_add(Vec<T> a) {
  for (int step = Vec<T>::kWidth / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) a.v[i] = a.v[i] + a.v[i + step];
  return a.v[0];
}

#endif

// The accumulation type of a storage type.
template <class S>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class S>
using Acc = typename AccOf<S>::type;

// out[i] = reduce_add(s[i]) for i < N, bitwise, in groups that share their additions.
template <int N, class T>
SSD_INLINE void reduce_add_all(const Vec<T>* s, T* out) {
#if defined(__AVX512F__)
  if constexpr (N >= 16 && sizeof(T) == 4) {
    reduce_add_16(s, out);
    reduce_add_all<N - 16>(s + 16, out + 16);
    return;
  }
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (N >= 8 && Vec<T>::kWidth >= 8) {
    reduce_add_8(s, out);
    reduce_add_all<N - 8>(s + 8, out + 8);
    return;
  }
  if constexpr (N >= 4 && (sizeof(T) == 4 || Vec<T>::kWidth == 4)) {
    reduce_add_4(s, out);
    reduce_add_all<N - 4>(s + 4, out + 4);
    return;
  }
#endif
  for (int i = 0; i < N; ++i) out[i] = reduce_add(s[i]);
}

// The canonical dot products of NX rows of x with NW rows of w, each of `size` entries: out[i * NW + j].
// 4 x 4 is the fastest tile with AVX-512 (its sums make one vector), 2 x 4 with AVX2.
template <int NX, int NW, class SX, class SW>
SSD_INLINE void dot_tile(const SX* const (&x)[NX], const SW* const (&w)[NW], ptrdiff_t size, Acc<SX>* out) {
  using V = Vec<Acc<SX>>;
  V sum[NX][NW];
  for (int i = 0; i < NX; ++i)
    for (int j = 0; j < NW; ++j) sum[i][j] = V::zero();
  ptrdiff_t d = 0;
  for (; d + V::kWidth <= size; d += V::kWidth) {
    V row[NW];
    for (int j = 0; j < NW; ++j) row[j] = V::load(w[j] + d);
    for (int i = 0; i < NX; ++i) {
      const V value = V::load(x[i] + d);
      for (int j = 0; j < NW; ++j) sum[i][j] = fma(value, row[j], sum[i][j]);
    }
  }
  if (const int rest = static_cast<int>(size - d)) {
    V row[NW];
    for (int j = 0; j < NW; ++j) row[j] = V::load_partial(w[j] + d, rest);
    for (int i = 0; i < NX; ++i) {
      const V value = V::load_partial(x[i] + d, rest);
      for (int j = 0; j < NW; ++j) sum[i][j] = fma(value, row[j], sum[i][j]);
    }
  }
  reduce_add_all<NX * NW>(&sum[0][0], out);
}

// The canonical dot products of N pairs of rows: out[i] = dot(x[i], w[i], size).
template <int N, class SX, class SW>
SSD_INLINE void dot_pairs(const SX* const (&x)[N], const SW* const (&w)[N], ptrdiff_t size, Acc<SX>* out) {
  using V = Vec<Acc<SX>>;
  V sum[N];
  for (V& s : sum) s = V::zero();
  ptrdiff_t d = 0;
  for (; d + V::kWidth <= size; d += V::kWidth)
    for (int i = 0; i < N; ++i) sum[i] = fma(V::load(x[i] + d), V::load(w[i] + d), sum[i]);
  if (const int rest = static_cast<int>(size - d))
    for (int i = 0; i < N; ++i) sum[i] = fma(V::load_partial(x[i] + d, rest), V::load_partial(w[i] + d, rest), sum[i]);
  reduce_add_all<N>(sum, out);
}

template <class SX, class SW>
SSD_INLINE Acc<SX> dot(const SX* x, const SW* w, ptrdiff_t size) {
  const SX* const xs[1] = {x};
  const SW* const ws[1] = {w};
  Acc<SX> out;
  dot_tile<1, 1>(xs, ws, size, &out);
  return out;
}

}  // namespace SSD_LEVEL
}  // namespace ssd::cpu
