// The SIMD levels that are compiled: to declare what each has, and to pick one at run time.
#pragma once

#include "ssd/simd_level.h"

// SSD_EACH_LEVEL(declare): declare(level) for every level, a namespace of ssd::cpu.
// SSD_AT_LEVEL(simd, entry): entry(level) of the level that `simd`, a SimdLevel, names.
#ifdef SSD_X86
#define SSD_EACH_LEVEL(declare) declare(generic) declare(avx2) declare(avx512) declare(avx512bf16)
#define SSD_AT_LEVEL(simd, entry)                                   \
  ((simd) == ::ssd::cpu::SimdLevel::kAvx512Bf16 ? entry(avx512bf16) \
   : (simd) == ::ssd::cpu::SimdLevel::kAvx512   ? entry(avx512)     \
   : (simd) == ::ssd::cpu::SimdLevel::kAvx2     ? entry(avx2)       \
                                                : entry(generic))
#else
#define SSD_EACH_LEVEL(declare) declare(generic)
#define SSD_AT_LEVEL(simd, entry) (static_cast<void>(simd), entry(generic))
#endif
