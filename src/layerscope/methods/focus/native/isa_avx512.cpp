// Compiled with -mavx512f -mavx2 -mfma; called only where the processor has them. 24 accumulators of 32 registers.
#ifdef __AVX512F__
#include "simd_avx512.h"
#define ISA_NAME "avx512"
constexpr int MR = 12, NV = 2, RUN = 8, KU = 2;
#include "kernels.inl"
const Kernels* kernels_here() { return &table; }
#else
#include "rows.h"
const Kernels* kernels_here() { return nullptr; }
#endif
