#include "ssd/simd_level.h"

#include <cstring>

namespace ssd::cpu {
namespace {
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512bf16"};
}

SimdLevel best_simd_level() {
#ifdef SSD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return SimdLevel::kAvx512Bf16;
  if (avx512) return SimdLevel::kAvx512;
  if (avx2) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kGeneric;
}

bool parse_simd_level(const char* name, SimdLevel* level) {
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *level = static_cast<SimdLevel>(i);
      return true;
    }
  }
  return false;
}

const char* simd_level_name(SimdLevel level) { return kNames[static_cast<int>(level)]; }

}  // namespace ssd::cpu
