// The kernels, written once over the register type V. The including file defines V, ISA_NAME, MR (rows of a tile) and
// NV (registers across channels), KU (input channels at a time); MR * NV accumulators, KU * NV weights and one broadcast
// must fit the register file.
//
// The convolution reads its inputs through a table of row numbers and never copies them: M. Dukhan, "The Indirect
// Convolution Algorithm" (arXiv 1907.02129), restricted here to active output rows.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "rows.h"
namespace {

constexpr int NR = NV * V::width;

inline V load_some(const float* p, int n) { return n == V::width ? V::load(p) : V::load(p, n); }
inline void store_some(V x, float* p, int n) { n == V::width ? x.store(p) : x.store(p, n); }

inline V exp(V x) {
  // 2^n e^r with |r| <= ln 2 / 2; the polynomial is the Taylor series to degree 7 (relative error < 1e-7).
  x = min_keep(V::all(88.0f), max_keep(V::all(-87.0f), x));
  const V n = round(x * V::all(1.44269504f));
  V r = fma(n, V::all(-0.693359375f), x);
  r = fma(n, V::all(2.12194440e-4f), r);
  V p = V::all(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, V::all(c));
  return ldexp(p, n);
}

inline V erf(V x) {
  // Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
  const V a = copysign(x, V::zero());
  const V t = V::all(1.0f) / fma(a, V::all(0.3275911f), V::all(1.0f));
  V p = V::all(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, V::all(c));
  return copysign(V::all(1.0f) - p * t * exp(V::zero() - a * a), x);
}

template <int ACT>
inline V activate(V x) {
  const V zero = V::zero(), one = V::all(1.0f);
  if constexpr (ACT == kRelu) return max_keep(zero, x);
  if constexpr (ACT == kRelu6) return min_keep(V::all(6.0f), max_keep(zero, x));
  if constexpr (ACT == kSilu) return x / (one + exp(zero - x));
  if constexpr (ACT == kGelu) return V::all(0.5f) * x * (one + erf(x * V::all(0.70710678f)));
  if constexpr (ACT == kHardswish)
    return x * min_keep(V::all(6.0f), max_keep(zero, x + V::all(3.0f))) * V::all(1.0f / 6);
  return x;
}

inline V activate(V x, int64_t act) {
  switch (act) {
    case kRelu: return activate<kRelu>(x);
    case kRelu6: return activate<kRelu6>(x);
    case kSilu: return activate<kSilu>(x);
    case kGelu: return activate<kGelu>(x);
    case kHardswish: return activate<kHardswish>(x);
    default: return x;
  }
}

inline const float* row_of(const ConvArgs& a, int32_t index, const float* inactive) {
  return index >= 0 ? a.x + index * a.ldx : index == kPadding ? a.zero : inactive;
}

// ROWS output rows by NR output channels. The accumulators stay in registers over all taps and channels.
template <int ROWS>
void conv_rows(const ConvArgs& a, int64_t row, int64_t panel, Ahead ahead) {
  V acc[ROWS][NV];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < NV; ++j) acc[i][j] = V::zero();
  const int64_t c = a.c;
  const float* w = a.w + panel * a.taps * c * NR;
  const float* inactive = a.fill ? a.fill : a.zero;
  for (int64_t t = 0; t < a.taps; ++t, w += c * NR) {
    const float* p[ROWS];
    bool silent = true;  // every row reads zeros here: nothing to add
    for (int i = 0; i < ROWS; ++i) {
      p[i] = a.table ? row_of(a, a.table[(row + i) * a.taps + t], inactive) : a.x + (row + i) * a.ldx;
      silent &= p[i] == a.zero;
    }
    if (silent) {
      ahead.from += ahead.step * c;
      continue;
    }
    const char* next = ahead.from;
    const int64_t also = ahead.step > 64 ? 64 : 0;
    const float* wk = w;
    // KU channels at a time, row by row: a row's address, which seldom stays in a register, serves KU broadcasts.
    const auto channels = [&](int64_t k, auto count) {
      constexpr int K = decltype(count)::value;
      V b[K][NV];
      for (int u = 0; u < K; ++u) {
        for (int j = 0; j < NV; ++j) b[u][j] = V::load(wk + u * NR + j * V::width);
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + also, 0, 2);
        next += ahead.step;
      }
      wk += K * NR;
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const float* row_i = p[i] + k;
#pragma GCC unroll 4
        for (int u = 0; u < K; ++u) {
          const V x = V::all(row_i[u]);
          for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, b[u][j], acc[i][j]);
        }
      }
    };
    int64_t k = 0;
    for (; k + KU <= c; k += KU) channels(k, std::integral_constant<int, KU>());
    for (; k < c; ++k) channels(k, std::integral_constant<int, 1>());
    ahead.from = next;
  }
  // Clamping covers no activation, ReLU and ReLU6 while the sums are still in registers; a smooth activation goes over
  // the finished tile once more, which is in the first-level cache.
  const V low = V::all(a.act == kRelu || a.act == kRelu6 ? 0.0f : -INFINITY);
  const V high = V::all(a.act == kRelu6 ? 6.0f : INFINITY);
  const int64_t first = panel * NR;
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    const int64_t ch = first + j * V::width;
    const int left = static_cast<int>(std::min<int64_t>(V::width, a.oc - ch));
    if (left <= 0) break;
    const V bias = load_some(a.bias + ch, left);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      V y = acc[i][j] + bias;
      if (a.residual) y = y + load_some(a.residual + (row + i) * a.ldr + ch, left);
      store_some(min_keep(high, max_keep(low, y)), a.y + (row + i) * a.ldy + ch, left);
    }
  }
  if (a.act > kRelu6) {
    for (int i = 0; i < ROWS; ++i)
      for (int64_t ch = first; ch < std::min(a.oc, first + NR); ch += V::width) {
        const int left = static_cast<int>(std::min<int64_t>(V::width, a.oc - ch));
        float* out = a.y + (row + i) * a.ldy + ch;
        store_some(activate(load_some(out, left), a.act), out, left);
      }
  }
}

template <int ROWS>
void conv_dispatch(const ConvArgs& a, int64_t row, int rows, int64_t panel, Ahead ahead) {
  if (rows == ROWS) return conv_rows<ROWS>(a, row, panel, ahead);
  if constexpr (ROWS > 1) conv_dispatch<ROWS - 1>(a, row, rows, panel, ahead);
}

void conv_tile(const ConvArgs& a, int64_t row, int rows, int64_t panel, Ahead ahead) {
  conv_dispatch<MR>(a, row, rows, panel, ahead);
}

inline void finish(const ConvArgs& a, V y, int64_t row, int64_t ch, int n) {
  if (a.residual) y = y + load_some(a.residual + row * a.ldr + ch, n);
  y = activate(y, a.act);
  store_some(y, a.y + row * a.ldy + ch, n);
}

// R horizontally adjacent outputs of a stride-1 depthwise layer with kernel width KW: each input column is loaded
// once for all the outputs it reaches, each weight once for all R.
template <int KW, int R>
void depthwise_run(const ConvArgs& a, int64_t row) {
  const float* inactive = a.fill ? a.fill : a.zero;
  const int64_t kh = a.taps / KW;
  constexpr int span = R + KW - 1;
  for (int64_t ch = 0; ch < a.c; ch += V::width) {
    const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
    V acc[R];
    const V bias = load_some(a.bias + ch, n);
    for (int r = 0; r < R; ++r) acc[r] = bias;
    for (int64_t y = 0; y < kh; ++y) {
      V w[KW];
      for (int k = 0; k < KW; ++k) w[k] = load_some(a.w + (y * KW + k) * a.c + ch, n);
#pragma GCC unroll 16
      for (int j = 0; j < span; ++j) {
        const int owner = j < R ? j : R - 1;  // an output whose window holds column j, and the tap that reads it
        const int32_t index = a.table[(row + owner) * a.taps + y * KW + (j - owner)];
        const V x = load_some(row_of(a, index, inactive) + ch, n);
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k)
          if (j - k >= 0 && j - k < R) acc[j - k] = fma(x, w[k], acc[j - k]);
      }
    }
    for (int r = 0; r < R; ++r) finish(a, acc[r], row + r, ch, n);
  }
}

template <int KW, int R>
void depthwise_pick(const ConvArgs& a, int64_t row, int64_t r) {
  if (r == R) return depthwise_run<KW, R>(a, row);
  if constexpr (R > 1) depthwise_pick<KW, R - 1>(a, row, r);
}

void depthwise_row(const ConvArgs& a, int64_t row) {
  const float* inactive = a.fill ? a.fill : a.zero;
  for (int64_t ch = 0; ch < a.c; ch += V::width) {
    const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
    V acc = load_some(a.bias + ch, n);
    for (int64_t t = 0; t < a.taps; ++t) {
      const float* p = row_of(a, a.table[row * a.taps + t], inactive);
      if (p == a.zero) continue;
      acc = fma(load_some(p + ch, n), load_some(a.w + t * a.c + ch, n), acc);
    }
    finish(a, acc, row, ch, n);
  }
}

void depthwise(const ConvArgs& a, int64_t first, int64_t last) {
  if (!a.runs) {
    for (int64_t row = first; row < last; ++row) depthwise_row(a, row);
    return;
  }
  constexpr int64_t longest = RUN;
  for (int64_t i = first; i < last; ++i) {
    for (int64_t row = a.runs[i], end = a.runs[i + 1]; row < end;) {
      const int64_t left = end - row, pieces = (left + longest - 1) / longest, r = (left + pieces - 1) / pieces;
      if (a.kernel_w == 3) depthwise_pick<3, RUN>(a, row, r);
      else if (a.kernel_w == 5) depthwise_pick<5, RUN>(a, row, r);
      else depthwise_pick<7, RUN>(a, row, r);
      row += r;
    }
  }
}

void pool(const PoolArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int32_t* index = a.table + row * a.taps;
    int64_t counted = 0;
    for (int64_t t = 0; t < a.taps; ++t) counted += a.count_padding || index[t] != kPadding;
    const V scale = V::all(1.0f / static_cast<float>(counted ? counted : 1));
    for (int64_t ch = 0; ch < a.c; ch += V::width) {
      const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
      V acc = a.mean ? V::zero() : V::all(-INFINITY);
      for (int64_t t = 0; t < a.taps; ++t) {
        if (index[t] == kPadding || (index[t] == kInactive && a.mean && !a.fill)) continue;
        const V x = index[t] >= 0 ? load_some(a.x + index[t] * a.c + ch, n)
                    : a.fill      ? load_some(a.fill + ch, n)
                                  : V::zero();
        acc = a.mean ? acc + x : max_keep(acc, x);
      }
      if (a.mean) acc = acc * scale;
      store_some(acc, a.y + row * a.c + ch, n);
    }
  }
}

void layer_norm(const NormArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* x = a.x + row * a.c;
    V total = V::zero();
    for (int64_t ch = 0; ch < a.c; ch += V::width)
      total = total + load_some(x + ch, static_cast<int>(std::min<int64_t>(V::width, a.c - ch)));
    const float mean = sum(total) / static_cast<float>(a.c);
    float squares = 0.0f;
    V wide = V::zero();
    const int64_t whole = a.c / V::width * V::width;
    for (int64_t ch = 0; ch < whole; ch += V::width) {
      const V d = V::load(x + ch) - V::all(mean);
      wide = fma(d, d, wide);
    }
    for (int64_t ch = whole; ch < a.c; ++ch) squares += (x[ch] - mean) * (x[ch] - mean);
    const float variance = (squares + sum(wide)) / static_cast<float>(a.c);
    const V m = V::all(mean), s = V::all(1.0f / std::sqrt(variance + static_cast<float>(a.eps)));
    for (int64_t ch = 0; ch < a.c; ch += V::width) {
      const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
      V y = (load_some(x + ch, n) - m) * s;
      if (a.weight) y = y * load_some(a.weight + ch, n);
      if (a.bias) y = y + load_some(a.bias + ch, n);
      store_some(y, a.y + row * a.c + ch, n);
    }
  }
}

void elementwise(const EltArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    for (int64_t ch = 0; ch < a.c; ch += V::width) {
      const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
      V y = load_some(a.a + row * a.c + ch, n);
      if (a.scale) y = y * load_some(a.scale + ch, n);
      if (a.b) y = y + load_some(a.b + row * a.c + ch, n);
      y = activate(y, a.act);
      store_some(y, a.y + row * a.c + ch, n);
    }
  }
}

void mean(const MeanArgs& a) {
  const float* x = a.x;
  for (int64_t image = 0; image < a.images; ++image) {
    const int64_t rows = a.counts[image];
    const V share = V::all(1.0f / static_cast<float>(a.cells)), absent = V::all(static_cast<float>(a.cells - rows));
    for (int64_t ch = 0; ch < a.c; ch += V::width) {
      const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
      V acc = a.fill ? absent * load_some(a.fill + ch, n) : V::zero();
      for (int64_t row = 0; row < rows; ++row) acc = acc + load_some(x + row * a.c + ch, n);
      store_some(acc * share, a.y + image * a.c + ch, n);
    }
    x += rows * a.c;
  }
}

void relevance(const RelevanceArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* x = a.x + row * a.c;
    V total = V::zero();
    for (int64_t ch = 0; ch < a.c; ch += V::width) {
      const int n = static_cast<int>(std::min<int64_t>(V::width, a.c - ch));
      const V v = load_some(x + ch, n);
      V weight = a.linear ? load_some(a.linear + ch, n) : V::zero();
      if (a.quadratic) weight = fma(load_some(a.quadratic + ch, n), v, weight);
      total = fma(weight, v, total);
    }
    a.y[row] = sum(total) + static_cast<float>(a.constant);
  }
}

const Kernels table{ISA_NAME, MR, NR, conv_tile, depthwise, pool, layer_norm, elementwise, mean, relevance};

}  // namespace
