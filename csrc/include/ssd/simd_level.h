// Which copy of a kernel runs: each is compiled once per level, and one is picked at run time.
#pragma once

namespace ssd::cpu {

enum class SimdLevel : int { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best level of this processor and operating system.
SimdLevel best_simd_level();

// "generic", "avx2", "avx512" or "avx512bf16"; false when the name is none of these.
bool parse_simd_level(const char* name, SimdLevel* level);
const char* simd_level_name(SimdLevel level);

}  // namespace ssd::cpu
