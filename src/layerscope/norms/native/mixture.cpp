// The passes of the mixture transform over a batch, fused: what norms/mixture_kernel.py does in blocks of torch
// operations. Compiled for one instruction set and one number of components, COMPONENTS.
//
// x is [B, C, S] in float32, with positions or channels adjacent in memory: "planes" or "rows". It is cut into items: as
// many positions of one sample as leave an item in the second-level cache. Tables are [K, width], tau is [B, K, S].
//
// at::parallel_for is the reason for the torch header: a second thread pool beside torch's would fight it for the cores.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
typedef float V __attribute__((vector_size(4 * L)));
typedef float Unaligned __attribute__((vector_size(4 * L), aligned(4)));
typedef int32_t I __attribute__((vector_size(4 * L)));

constexpr int K = COMPONENTS;
constexpr int64_t kItem = 1 << 15;   // floats of x in one item, about
constexpr int64_t kGrain = 1 << 15;  // floats of x that are worth a thread
constexpr int64_t kFlush = 256;      // numbers summed in float32 before the sum goes on in float64

V splat(float a) { return V{} + a; }

// The first n of L numbers; the others are zero, and their memory is not touched.
V load(const float* p, int64_t n) {
  if (n >= L) return *reinterpret_cast<const Unaligned*>(p);
#ifdef __AVX512F__
  return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  V v{};
  std::memcpy(&v, p, 4 * n);
  return v;
#endif
}

void store(float* p, V v, int64_t n) {
  if (n >= L) {
    *reinterpret_cast<Unaligned*>(p) = v;
    return;
  }
#ifdef __AVX512F__
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, 4 * n);
#endif
}

// exp of x <= 0, relative error below 2e-7; exactly 0 below -87, and not a number where x is none.
V exponential(V x) {
  const V low = splat(-87.0f), safe = x < low ? low : x;
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V t = safe * 1.44269504f + magic, n = t - magic;
  const V r = (safe - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const V y = p * (V)(((I)t << 23) + 0x3f800000);
  return x < low ? V{} : y;
}

struct View {
  int64_t B, C, S, sb, sc, ss;

  bool planes() const { return ss == 1; }
};

// Positions [s, s + n) of sample b.
struct Item {
  int64_t b, s, n;

  int64_t in(const View& v) const { return b * v.sb + s * v.ss; }
  int64_t in_tau(const View& v) const { return b * K * v.S + s; }
};

int64_t positions(const View& v) {
  if (v.C * v.S <= 2 * kItem) return v.S;
  return std::min(v.S, std::max<int64_t>(2 * L, kItem / v.C / (2 * L) * (2 * L)));
}

// work(thread, items) over all items, in parallel; items(f) calls f for those of one thread.
template <class F>
void over_items(const View& v, const F& work) {
  const int64_t n = positions(v), parts = (v.S + n - 1) / n;
  const int64_t grain = std::max<int64_t>(1, kGrain / (v.C * n));
  at::parallel_for(0, v.B * parts, grain, [&](int64_t first, int64_t last) {
    work(at::get_thread_num(), [=](const auto& f) {
      for (int64_t i = first; i < last; ++i) f(Item{i / parts, i % parts * n, std::min(n, v.S - i % parts * n)});
    });
  });
}

// An item as planes: where it lies, or a copy.
struct Planes {
  const View& v;
  int64_t ld;
  std::vector<float> copy;

  // planes a power of two apart would share the few lines of one cache set
  explicit Planes(const View& v)
      : v(v), ld(v.planes() ? v.sc : (positions(v) + 15) / 16 * 16 + 16), copy(v.planes() ? 0 : v.C * ld) {}

  const float* operator()(const float* x, int64_t n) {
    if (v.planes()) return x;
    constexpr int64_t side = 16;  // whole cache lines of either side
    for (int64_t c0 = 0; c0 < v.C; c0 += side)
      for (int64_t s0 = 0; s0 < n; s0 += side)
        for (int64_t c = c0; c < std::min(v.C, c0 + side); ++c)
          for (int64_t s = s0; s < std::min(n, s0 + side); ++s) copy[c * ld + s] = x[c * v.sc + s * v.ss];
    return copy.data();
  }
};

// What depends on the component, of one position or channel.
typedef V PerComponent[K];

V blend(const PerComponent& t, const PerComponent& table) {
  V out = t[0] * table[0];
  for (int k = 1; k < K; ++k) out += t[k] * table[k];
  return out;
}

void load_all(PerComponent& t, const float* p, int64_t ld, int64_t n) {
  for (int k = 0; k < K; ++k) t[k] = load(p + k * ld, n);
}

void splat_all(PerComponent& t, const float* p, int64_t ld) {
  for (int k = 0; k < K; ++k) t[k] = splat(p[k * ld]);
}

// Posteriors of R * L positions, n of them there: softmax of offset + z * (linear + z * square), z = x - centre.
template <int R>
void posterior_tile(
    const float* x, int64_t ld, int64_t n, int64_t C, const float* table, const float* centre, float* tau, int64_t ldt) {
  const int64_t width = 2 * C + 1;
  PerComponent a[R];
  for (int r = 0; r < R; ++r) splat_all(a[r], table + 2 * C, width);
  for (int64_t c = 0; c < C; ++c) {
    V z[R];
    for (int r = 0; r < R; ++r) z[r] = load(x + c * ld + r * L, n - r * L) - centre[c];
    for (int k = 0; k < K; ++k)
      for (int r = 0; r < R; ++r) a[r][k] += z[r] * (z[r] * table[k * width + C + c] + table[k * width + c]);
  }
  for (int r = 0; r < R; ++r) {
    V most = a[r][0], sum{};
    for (int k = 1; k < K; ++k) most = a[r][k] > most ? a[r][k] : most;
    for (int k = 0; k < K; ++k) sum += a[r][k] = exponential(a[r][k] - most);
    for (int k = 0; k < K; ++k) store(tau + k * ldt + r * L, a[r][k] / sum, n - r * L);
  }
}

void posteriors(
    const float* x, int64_t ld, int64_t n, int64_t C, const float* table, const float* centre, float* tau, int64_t ldt) {
  constexpr int R = K > 4 ? 1 : 2;
  int64_t s = 0;
  for (; s + R * L <= n; s += R * L) posterior_tile<R>(x + s, ld, R * L, C, table, centre, tau + s, ldt);
  for (; s < n; s += L) posterior_tile<1>(x + s, ld, n - s, C, table, centre, tau + s, ldt);
}

// Sums of tau_k a_c and tau_k a_c z_c over positions, (K, 2C), where a is z = x - centre or the upstream gradient g; and
// of tau_k. One thread's.
class Sums {
 public:
  explicit Sums(int64_t C) : C(C), sum(K * (2 * C + 1)) {}

  void add_planes(
      const float* x, const float* g, int64_t ld, int64_t ldg, int64_t n, const float* tau, int64_t ldt,
      const float* centre) {
    constexpr int N = K > 4 ? 1 : 2;
    part.resize(2 * C * K * L);  // [C][2][K] vectors, added up over their lanes in flush
    int64_t c = 0;
    for (; c + N <= C; c += N) planes<N>(c, x, g, ld, ldg, n, tau, ldt, centre);
    for (; c < C; ++c) planes<1>(c, x, g, ld, ldg, n, tau, ldt, centre);
    end(n, tau, ldt);
    pending += n / L;
  }

  void add_rows(
      const float* x, const float* g, int64_t ss, int64_t ssg, int64_t n, const float* tau, int64_t ldt,
      const float* centre) {
    const int64_t padded = (C + L - 1) / L * L;
    part.resize(2 * K * padded);  // [2][K][C]
    for (int64_t c = 0; c < C; c += L) {
      const V m = load(centre + c, C - c);
      PerComponent first, second;
      load_all(first, part.data() + c, padded, L);
      load_all(second, part.data() + K * padded + c, padded, L);
      for (int64_t s = 0; s < n; ++s) {
        const V z = load(x + s * ss + c, C - c) - m, a = g ? load(g + s * ssg + c, C - c) : z, b = a * z;
        for (int k = 0; k < K; ++k) {
          first[k] += a * tau[k * ldt + s];
          second[k] += b * tau[k * ldt + s];
        }
      }
      for (int k = 0; k < K; ++k) {
        store(part.data() + k * padded + c, first[k], L);
        store(part.data() + (K + k) * padded + c, second[k], L);
      }
    }
    end(n, tau, ldt);
  }

  void flush(bool planes) {
    if (part.empty()) return;
    const int64_t width = 2 * C + 1, padded = (C + L - 1) / L * L;
    for (int k = 0; k < K; ++k)
      for (int which = 0; which < 2; ++which)
        for (int64_t c = 0; c < C; ++c) {
          const float* from = planes ? at(c, which, k) : part.data() + (which * K + k) * padded + c;
          double all = 0;
          for (int i = 0; i < (planes ? L : 1); ++i) all += from[i];
          sum[k * width + which * C + c] += all;
        }
    std::fill(part.begin(), part.end(), 0.0f);
    pending = 0;
  }

  bool is_full() const { return pending >= kFlush; }

  const int64_t C;
  std::vector<double> sum;  // [K][2C + 1]

 private:
  float* at(int64_t c, int which, int k) { return part.data() + ((c * 2 + which) * K + k) * L; }

  template <int N>
  void planes(
      int64_t c, const float* x, const float* g, int64_t ld, int64_t ldg, int64_t n, const float* tau, int64_t ldt,
      const float* centre) {
    PerComponent first[N], second[N];
    for (int i = 0; i < N; ++i) {
      load_all(first[i], at(c + i, 0, 0), L, L);
      load_all(second[i], at(c + i, 1, 0), L, L);
    }
    for (int64_t s = 0; s < n; s += L) {
      V a[N], b[N];
      for (int i = 0; i < N; ++i) {
        const V z = load(x + (c + i) * ld + s, n - s) - centre[c + i];
        a[i] = g ? load(g + (c + i) * ldg + s, n - s) : z;
        b[i] = a[i] * z;
      }
      for (int k = 0; k < K; ++k) {
        const V t = load(tau + k * ldt + s, n - s);
        for (int i = 0; i < N; ++i) {
          first[i][k] += t * a[i];
          second[i][k] += t * b[i];
        }
      }
    }
    for (int i = 0; i < N; ++i)
      for (int k = 0; k < K; ++k) {
        store(at(c + i, 0, k), first[i][k], L);
        store(at(c + i, 1, k), second[i][k], L);
      }
  }

  void end(int64_t n, const float* tau, int64_t ldt) {
    for (int k = 0; k < K; ++k) {
      V mass{};
      for (int64_t s = 0; s < n; s += L) mass += load(tau + k * ldt + s, n - s);
      for (int i = 0; i < L; ++i) sum[k * (2 * C + 1) + 2 * C] += mass[i];
    }
  }

  int64_t pending = 0;
  std::vector<float> part;
};

// Posteriors, unless there is a gradient g (then they are given), and the sums that they weight.
void collect(
    const View& v, const float* x, const float* table, const float* centre, const View& vg, const float* g, float* tau,
    float* sums) {
  std::vector<Sums> of(at::get_num_threads(), Sums(v.C));
  over_items(v, [&](int thread, const auto& items) {
    Sums& mine = of[thread];
    Planes as_planes(v);
    items([&](const Item& item) {
      const float *from = x + item.in(v), *up = g ? g + item.in(vg) : nullptr;
      float* t = tau + item.in_tau(v);
      if (!g) posteriors(as_planes(from, item.n), as_planes.ld, item.n, v.C, table, centre, t, v.S);
      if (v.planes()) {
        mine.add_planes(from, up, v.sc, vg.sc, item.n, t, v.S, centre);
        if (mine.is_full()) mine.flush(true);
        return;
      }
      for (int64_t s = 0; s < item.n; s += kFlush) {
        const int64_t n = std::min(kFlush, item.n - s);
        mine.add_rows(from + s * v.ss, up ? up + s * vg.ss : nullptr, v.ss, vg.ss, n, t + s, v.S, centre);
        mine.flush(false);
      }
    });
    mine.flush(v.planes());
  });
  for (int64_t i = 0; i < K * (2 * v.C + 1); ++i) {
    double all = 0;
    for (const Sums& one : of) all += one.sum[i];  // in the order of the threads
    sums[i] = static_cast<float>(all);
  }
}

// y = x (tau slope) + tau constant [+ g (tau own), if there is a gradient g] over one item.
void affine(
    const View& v, const Item& item, const float* x, const View& vg, const float* g, float* y, const float* tau,
    int64_t ldt, const float* slope, const float* constant, const float* own) {
  x += item.in(v);
  y += item.in(v);
  if (g) g += item.in(vg);
  PerComponent a, b, w, t;
  if (v.planes()) {
    for (int64_t c = 0; c < v.C; ++c) {
      splat_all(a, slope + c, v.C);
      splat_all(b, constant + c, v.C);
      if (g) splat_all(w, own + c, v.C);
      for (int64_t s = 0; s < item.n; s += L) {
        const int64_t n = item.n - s;
        load_all(t, tau + s, ldt, n);
        V out = load(x + c * v.sc + s, n) * blend(t, a) + blend(t, b);
        if (g) out += load(g + c * vg.sc + s, n) * blend(t, w);
        store(y + c * v.sc + s, out, n);
      }
    }
    return;
  }
  for (int64_t s = 0; s < item.n; ++s) {
    splat_all(t, tau + s, ldt);
    for (int64_t c = 0; c < v.C; c += L) {
      const int64_t n = v.C - c;
      load_all(a, slope + c, v.C, n);
      load_all(b, constant + c, v.C, n);
      V out = load(x + s * v.ss + c, n) * blend(t, a) + blend(t, b);
      if (g) {
        load_all(w, own + c, v.C, n);
        out += load(g + s * vg.ss + c, n) * blend(t, w);
      }
      store(y + s * v.ss + c, out, n);
    }
  }
}

}  // namespace

extern "C" {

// tau, and the sums (K, 2C + 1) of tau_k z_c, tau_k z_c^2 and tau_k.
void mixture_collect(
    const View* v, const float* x, const float* table, const float* centre, float* tau, float* sums) {
  collect(*v, x, table, centre, *v, nullptr, tau, sums);
}

// The sums (K, 2C + 1) of tau_k g_c, tau_k g_c z_c and tau_k.
void mixture_collect_back(
    const View* v, const float* x, const View* vg, const float* g, const float* centre, float* tau, float* sums) {
  collect(*v, x, nullptr, centre, *vg, g, tau, sums);
}

// y = x (tau slope) + tau constant; y lies in memory like x.
void mixture_normalize(
    const View* v, const float* x, float* y, const float* tau, const float* slope, const float* constant) {
  over_items(*v, [=](int, const auto& items) {
    items([=](const Item& item) {
      affine(*v, item, x, *v, nullptr, y, tau + item.in_tau(*v), v->S, slope, constant, nullptr);
    });
  });
}

// dx = x (tau slope) + tau constant + g (tau own); dx lies in memory like x.
void mixture_gradient(
    const View* v, const float* x, const View* vg, const float* g, float* dx, const float* tau, const float* slope,
    const float* constant, const float* own) {
  over_items(*v, [=](int, const auto& items) {
    items([=](const Item& item) {
      affine(*v, item, x, *vg, g, dx, tau + item.in_tau(*v), v->S, slope, constant, own);
    });
  });
}

// Posteriors and y in one pass.
void mixture_evaluate(
    const View* v, const float* x, float* y, const float* table, const float* centre, const float* slope,
    const float* constant) {
  over_items(*v, [=](int, const auto& items) {
    Planes as_planes(*v);
    const int64_t most = positions(*v);
    std::vector<float> tau(K * most);
    items([&](const Item& item) {
      posteriors(as_planes(x + item.in(*v), item.n), as_planes.ld, item.n, v->C, table, centre, tau.data(), most);
      affine(*v, item, x, *v, nullptr, y, tau.data(), most, slope, constant, nullptr);
    });
  });
}
}
