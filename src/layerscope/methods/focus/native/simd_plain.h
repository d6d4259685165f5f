// Four floats through the compiler's own vectors: SSE2 on any x86-64, NEON on ARM, scalar code elsewhere.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float Four __attribute__((vector_size(16), aligned(4)));

struct V {
  static constexpr int width = 4;
  Four v;
  static V zero() { return all(0.0f); }
  static V all(float a) { return {Four{a, a, a, a}}; }
  static V load(const float* p) { V r; std::memcpy(&r.v, p, sizeof r.v); return r; }
  static V load(const float* p, int n) { V r = zero(); std::memcpy(&r.v, p, sizeof(float) * n); return r; }
  void store(float* p) const { std::memcpy(p, &v, sizeof v); }
  void store(float* p, int n) const { std::memcpy(p, &v, sizeof(float) * n); }
};
static inline V operator+(V a, V b) { return {a.v + b.v}; }
static inline V operator-(V a, V b) { return {a.v - b.v}; }
static inline V operator*(V a, V b) { return {a.v * b.v}; }
static inline V operator/(V a, V b) { return {a.v / b.v}; }
static inline V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
static inline V max_keep(V bound, V x) { V r; for (int i = 0; i < 4; ++i) r.v[i] = bound.v[i] > x.v[i] ? bound.v[i] : x.v[i]; return r; }
static inline V min_keep(V bound, V x) { V r; for (int i = 0; i < 4; ++i) r.v[i] = bound.v[i] < x.v[i] ? bound.v[i] : x.v[i]; return r; }
static inline V round(V a) { V r; for (int i = 0; i < 4; ++i) r.v[i] = std::nearbyintf(a.v[i]); return r; }
static inline V ldexp(V a, V n) { V r; for (int i = 0; i < 4; ++i) r.v[i] = std::ldexp(a.v[i], static_cast<int>(n.v[i])); return r; }
static inline V copysign(V m, V s) { V r; for (int i = 0; i < 4; ++i) r.v[i] = std::copysign(m.v[i], s.v[i]); return r; }
static inline float sum(V a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
