// The number of positive values of each column. Traffic: the values once; the counts of a strip of columns stay in L1.
#include "ops/activation_counts/activation_counts_levels.h"
#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

constexpr int64_t kStrip = 512;

template <class S>
void count_columns(const ActivationCountsParams& p, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t width = end - first < kStrip ? end - first : kStrip;
    int64_t* counts = p.counts + first;
    for (int64_t j = 0; j < width; ++j) counts[j] = 0;
    // 32-bit counts of up to 2^30 rows at a time: twice the lanes.
    for (int64_t row = 0; row < p.batch;) {
      const int64_t stop = p.batch - row > (int64_t{1} << 30) ? row + (int64_t{1} << 30) : p.batch;
      int32_t strip[kStrip] = {};
      for (; row < stop; ++row) {
        const S* values = static_cast<const S*>(p.values) + row * p.stride + first;
        for (int64_t j = 0; j < width; ++j) strip[j] += to_acc(values[j]) > 0;
      }
      for (int64_t j = 0; j < width; ++j) counts[j] += strip[j];
    }
  }
}

void activation_counts_columns(const ActivationCountsParams& params, int64_t begin, int64_t end) {
  switch (params.dtype) {
    case Dtype::kFloat32:
      return count_columns<float>(params, begin, end);
    case Dtype::kFloat64:
      return count_columns<double>(params, begin, end);
    case Dtype::kBFloat16:
      return count_columns<BFloat16>(params, begin, end);
    case Dtype::kHalf:
      return count_columns<Half>(params, begin, end);
  }
}

}  // namespace ssd::cpu::SSD_LEVEL
