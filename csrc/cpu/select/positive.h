// Tests of stored numbers that need no arithmetic type, for the code outside the SIMD levels.
#pragma once

#include <cstdint>

#include "ssd/dtype.h"

namespace ssd::cpu {

// Whether number i of an array of this storage type is > 0 (NaN is not).
inline bool is_positive(Dtype dtype, const void* values, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(values)[i] > 0;
    case Dtype::kFloat64:
      return static_cast<const double*>(values)[i] > 0;
    default: {  // bf16 and fp16 alike: the sign bit clear, not zero, at most infinity
      const uint16_t bits = static_cast<const uint16_t*>(values)[i];
      return bits > 0 && bits <= (dtype == Dtype::kHalf ? 0x7c00 : 0x7f80);
    }
  }
}

}  // namespace ssd::cpu
