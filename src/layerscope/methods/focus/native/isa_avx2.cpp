// Compiled with -mavx2 -mfma; called only where the processor has them. 12 accumulators of 16 registers.
#if defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#define ISA_NAME "avx2"
constexpr int MR = 6, NV = 2, RUN = 4, KU = 1;
#include "kernels.inl"
const Kernels* kernels_here() { return &table; }
#else
#include "rows.h"
const Kernels* kernels_here() { return nullptr; }
#endif
