// From a mask to row numbers, and from row numbers to the index table of one kernel geometry.
#include "rows.h"

extern "C" int64_t focus_level(const LevelArgs* a) {
  int64_t n = 0, at = 0;
  for (int64_t image = 0; image < a->images; ++image) {
    const int64_t before = n;
    for (int64_t cell = 0; cell < a->h * a->w; ++cell, ++at) {
      if (a->mask[at]) {
        a->position[n] = static_cast<int32_t>(at);
        a->map[at] = static_cast<int32_t>(n++);
      } else {
        a->map[at] = kInactive;
      }
    }
    a->counts[image] = n - before;
  }
  return n;
}

extern "C" void focus_shrink(const ShrinkArgs* a) {
  const auto clamp = [](int64_t v, int64_t size) { return v < 0 ? 0 : v >= size ? size - 1 : v; };
  for (int64_t image = 0; image < a->images; ++image) {
    const uint8_t* mask = a->mask + image * a->h * a->w;
    uint8_t* out = a->out + image * a->out_h * a->out_w;
    for (int64_t y = 0; y < a->out_h; ++y)
      for (int64_t x = 0; x < a->out_w; ++x, ++out) {
        *out = 0;
        for (int64_t i = 0; i < a->sh; ++i) {
          const uint8_t* row = mask + clamp(y * a->sh + a->y0 + i, a->h) * a->w;
          for (int64_t j = 0; j < a->sw; ++j) *out |= row[clamp(x * a->sw + a->x0 + j, a->w)];
        }
      }
  }
}

extern "C" void focus_table(const TableArgs* a) {
  const int64_t taps = a->kh * a->kw, cells = a->out_h * a->out_w;
  for (int64_t o = 0; o < a->n; ++o) {
    const int64_t p = a->position[o], image = p / cells, cell = p % cells;
    const int64_t y0 = cell / a->out_w * a->sh - a->ph, x0 = cell % a->out_w * a->sw - a->pw;
    const int32_t* map = a->map + image * a->h * a->w;
    int32_t* out = a->table + o * taps;
    for (int64_t i = 0; i < a->kh; ++i) {
      const int64_t y = y0 + i * a->dh;
      const bool inside = y >= 0 && y < a->h;
      for (int64_t j = 0; j < a->kw; ++j, ++out) {
        const int64_t x = x0 + j * a->dw;
        *out = inside && x >= 0 && x < a->w ? map[y * a->w + x] : kPadding;
      }
    }
  }
}

// Starts of runs of outputs that are neighbours in one image row; returns how many, runs[count] = n.
extern "C" int64_t focus_runs(const int32_t* position, int64_t n, int64_t w, int32_t* runs) {
  int64_t count = 0;
  for (int64_t o = 0; o < n; ++o)
    if (o == 0 || position[o] != position[o - 1] + 1 || position[o] % w == 0) runs[count++] = static_cast<int32_t>(o);
  runs[count] = static_cast<int32_t>(n);
  return count;
}
