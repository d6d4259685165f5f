// The plain C interface between Python (ctypes) and the kernels, and between the entry point and the three
// instruction sets. Everything is float32, row-major; a "row" is one active position with all its channels.
#pragma once
#include <cstdint>

// Two different absences in an index table. They are never merged: outside the grid a convolution reads zeros,
// at an inactive position it reads the level's fill.
constexpr int32_t kPadding = -1;
constexpr int32_t kInactive = -2;

enum Activation : int32_t { kNone = 0, kRelu = 1, kRelu6 = 2, kSilu = 3, kGelu = 4, kHardswish = 5 };

extern "C" {

// y[o] = act(bias + residual[o] + sum_t W_t x[table[o, t]])   for o in 0..n
struct ConvArgs {
  const float* x;        // input rows
  int64_t ldx;           // floats between input rows
  const int32_t* table;  // [n, taps]; null: one tap, row o reads row o
  int64_t n;             // output rows
  int64_t taps;
  int64_t c;             // input channels read per tap (of one group)
  const float* w;        // packed [groups][panels][taps][c][nr]; depthwise: [taps][c]
  int64_t oc;            // output channels (of one group)
  int64_t groups;
  const float* bias;     // [groups * oc]
  const float* residual; // rows like y, or null
  int64_t ldr;
  int64_t act;
  float* y;
  int64_t ldy;
  const float* fill;     // one row: what an inactive position reads; null: zeros
  const float* zero;     // one row of zeros, at least as long as a row of x
  const int32_t* runs;   // depthwise: starts of runs of horizontally adjacent outputs, n_runs + 1 entries; or null
  int64_t n_runs;
  int64_t kernel_w;      // depthwise: taps per kernel row
};

struct PoolArgs {
  const float* x;
  const int32_t* table;
  int64_t n, taps, c;
  int64_t mean;          // 0: maximum, 1: sum divided by the dense divisor
  int64_t count_padding; // mean: whether padding counts into the divisor
  float* y;
  const float* fill;
};

struct NormArgs {
  const float* x;
  int64_t n, c;
  const float* weight;   // null: ones
  const float* bias;     // null: zeros
  double eps;
  float* y;
};

struct EltArgs {         // y = act(a * scale + b); b may be null, scale may be null
  const float* a;
  const float* b;
  const float* scale;    // one row
  int64_t n, c;
  int64_t act;
  float* y;
};

struct MeanArgs {        // y[image] = (sum of its rows + (cells - rows) * fill) / cells: the dense divisor
  const float* x;
  const int64_t* counts; // rows of each image
  int64_t images, c, cells;
  const float* fill;     // null: zeros
  float* y;              // [images, c]
};

struct RelevanceArgs {   // y[row] = constant + sum_c (quadratic_c x_c + linear_c) x_c
  const float* x;
  int64_t n, c;
  const float* quadratic; // null: zeros
  const float* linear;    // null: zeros
  double constant;
  float* y;
};

struct LevelArgs {       // active positions in raster order, image after image
  const uint8_t* mask;   // [images, h, w]
  int64_t images, h, w;
  int32_t* map;          // [images, h, w]: row number or kInactive
  int32_t* position;     // [up to images * h * w]: flat position of each row
  int64_t* counts;       // [images]
};

struct ShrinkArgs {       // the set after a strided layer: an output is active where any position of its s x s cell is
  const uint8_t* mask;   // [images, h, w]
  int64_t images, h, w, out_h, out_w;
  int64_t sh, sw, y0, x0; // output (0, 0)'s cell starts at (y0, x0); a cell that sticks out of the grid repeats the border
  uint8_t* out;          // [images, out_h, out_w]
};

struct TableArgs {
  const int32_t* map;        // of the input level
  int64_t h, w;              // input grid
  const int32_t* position;   // of the output level
  int64_t n, out_h, out_w;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int32_t* table;            // [n, kh * kw]
};
}

// Memory that will be read soon, and how many bytes of it to ask for with every input channel of a tile. Weights that no
// cache holds arrive at half the machine's bandwidth if that is left to the hardware.
struct Ahead {
  const char* from;
  int64_t step;
};

// What one instruction set offers.
struct Kernels {
  const char* name;
  int mr, nr;
  void (*conv_tile)(const ConvArgs&, int64_t row, int rows, int64_t panel, Ahead ahead);
  void (*depthwise)(const ConvArgs&, int64_t first, int64_t last);  // over runs if given, else over rows
  void (*pool)(const PoolArgs&, int64_t first, int64_t last);
  void (*layer_norm)(const NormArgs&, int64_t first, int64_t last);
  void (*elementwise)(const EltArgs&, int64_t first, int64_t last);
  void (*mean)(const MeanArgs&);
  void (*relevance)(const RelevanceArgs&, int64_t first, int64_t last);
};

const Kernels* kernels_here();  // of the one instruction set in this library; null if the compiler could not make it
