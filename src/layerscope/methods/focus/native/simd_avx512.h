// One AVX-512 register of 16 floats.
#pragma once
#include <immintrin.h>
#include <cstdint>

struct V {
  static constexpr int width = 16;
  __m512 v;
  static V zero() { return {_mm512_setzero_ps()}; }
  static V all(float a) { return {_mm512_set1_ps(a)}; }
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};
static inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// A NaN in the second operand survives: x86 max and min return their second operand then.
static inline V max_keep(V bound, V x) { return {_mm512_max_ps(bound.v, x.v)}; }
static inline V min_keep(V bound, V x) { return {_mm512_min_ps(bound.v, x.v)}; }
static inline V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline V ldexp(V a, V n) { return {_mm512_scalef_ps(a.v, n.v)}; }
static inline V copysign(V magnitude, V sign) {
  const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return {_mm512_castsi512_ps(_mm512_or_epi32(_mm512_andnot_epi32(bit, _mm512_castps_si512(magnitude.v)),
                                              _mm512_and_epi32(bit, _mm512_castps_si512(sign.v))))};
}
static inline float sum(V a) { return _mm512_reduce_add_ps(a.v); }
