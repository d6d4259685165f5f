// Any machine: compiled with the compiler's default flags. NEON has 32 registers, SSE2 has 16.
#include "simd_plain.h"
#define ISA_NAME "plain"
#if defined(__aarch64__)
constexpr int MR = 8, NV = 2, RUN = 4, KU = 2;
#else
constexpr int MR = 4, NV = 2, RUN = 4, KU = 1;
#endif
#include "kernels.inl"
const Kernels* kernels_here() { return &table; }
