// What Python calls: splits work over torch's own thread pool. Each library holds one instruction set.
//
// at::parallel_for is the reason for the one torch header: a second OpenMP runtime beside torch's would fight it for
// the cores. No tensor crosses this interface, so the file compiles in a second.
#include <ATen/Parallel.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>

#include "rows.h"

namespace {

bool processor_has(const char* name) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx512")) return __builtin_cpu_supports("avx512f");
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(name, "plain");
}

// Packed weights beyond this are walked panel by panel, so that one panel stays in the second-level cache.
constexpr int64_t kCacheFloats = 1 << 18;
constexpr int64_t kNear = 16384;  // bytes

template <class F>
void split(int64_t n, int64_t grain, const F& f) {
  at::parallel_for(0, n, std::max<int64_t>(1, grain), f);
}

}  // namespace

extern "C" {

// Asks for large pages over the whole pages inside [memory, memory + bytes): streaming weights through 4 KiB pages
// stops the hardware prefetcher at every page. A hint; nothing depends on it.
void focus_large_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 2u << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Handle of this library's instruction set; null if this processor lacks it.
const void* focus_kernels() {
  const Kernels* k = kernels_here();
  return k && processor_has(k->name) ? k : nullptr;
}

const char* focus_name(const void* handle) { return static_cast<const Kernels*>(handle)->name; }

int64_t focus_panel(const void* handle) { return static_cast<const Kernels*>(handle)->nr; }

void focus_conv(const void* handle, const ConvArgs* args) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  const int64_t panels = (args->oc + k.nr - 1) / k.nr, blocks = (args->n + k.mr - 1) / k.mr;
  const int64_t size = args->taps * args->c * k.nr;  // floats of a panel
  const bool panel_major = panels * size > kCacheFloats;
  for (int64_t g = 0; g < args->groups; ++g) {
    ConvArgs a = *args;
    a.x += g * a.c;
    a.w += g * panels * a.taps * a.c * k.nr;
    a.bias += g * a.oc;
    a.y += g * a.oc;
    if (a.residual) a.residual += g * a.oc;
    if (a.fill) a.fill += g * a.c;
    const int64_t work = 2 * a.taps * a.c * k.nr * k.mr;
    split(panels * blocks, 500000 / work, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = panel_major ? task % blocks : task / panels;
        const int64_t panel = panel_major ? task / blocks : task % panels;
        // blocks of nearly equal height: no thin last tile
        const int64_t row = block * a.n / blocks, stop = (block + 1) * a.n / blocks;
        // While a panel is in use, the next one is fetched, a part with every block; the panel after the last belongs to
        // the layer that runs next. Panels that all stay in cache are fetched by the first block only.
        const char* w = reinterpret_cast<const char*>(a.w + panel * size);
        const Ahead ahead = panel_major ? Ahead{w + 4 * size + block * (4 * size / blocks), 4 * k.nr / blocks}
                                        : Ahead{w + kNear, block ? 0 : 4 * k.nr};
        k.conv_tile(a, row, static_cast<int>(stop - row), panel, ahead);
      }
    });
  }
}

void focus_depthwise(const void* handle, const ConvArgs* a) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  const int64_t tasks = a->runs ? a->n_runs : a->n, rows = std::max<int64_t>(1, a->n / std::max<int64_t>(1, tasks));
  split(tasks, 200000 / (rows * a->taps * a->c + 1), [&](int64_t b, int64_t e) { k.depthwise(*a, b, e); });
}

void focus_pool(const void* handle, const PoolArgs* a) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  split(a->n, 100000 / (a->taps * a->c + 1), [&](int64_t b, int64_t e) { k.pool(*a, b, e); });
}

void focus_layer_norm(const void* handle, const NormArgs* a) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  split(a->n, 50000 / (a->c + 1), [&](int64_t b, int64_t e) { k.layer_norm(*a, b, e); });
}

void focus_elementwise(const void* handle, const EltArgs* a) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  split(a->n, 50000 / (a->c + 1), [&](int64_t b, int64_t e) { k.elementwise(*a, b, e); });
}

void focus_mean(const void* handle, const MeanArgs* a) { static_cast<const Kernels*>(handle)->mean(*a); }

void focus_relevance(const void* handle, const RelevanceArgs* a) {
  const Kernels& k = *static_cast<const Kernels*>(handle);
  split(a->n, 100000 / (a->c + 1), [&](int64_t b, int64_t e) { k.relevance(*a, b, e); });
}
}
