// Compiled with -mavx2 -mfma; called only where the processor has them. 12 accumulators of 16 registers.
#if defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
constexpr int MR = 6, NV = 2, RUN = 4;
#include "kernels.inl"
const Kernels* kernels_avx2() { return &table; }
#else
#include "rows.h"
const Kernels* kernels_avx2() { return nullptr; }
#endif
