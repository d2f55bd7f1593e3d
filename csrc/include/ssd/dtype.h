// Storage types of tensors. Arithmetic is fp32, and fp64 for fp64.
#pragma once

namespace ssd::cpu {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kHalf = 3 };

}  // namespace ssd::cpu
