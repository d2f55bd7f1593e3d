// What sparse activations must hold before a kernel reads them: the one check of offsets and indices.
#pragma once

#include <cstdint>

namespace ssd::cpu {

enum class RowsFault { kNone, kOffsets, kIndex, kOrder };

struct RowsFinding {
  RowsFault fault = RowsFault::kNone;
  int64_t value = 0;  // the first offending offset or index
};

// offsets (samples + 1,), or null where every sample has the same number; indices (count,). Offsets are 0, ascending,
// count; indices from 0 to neurons - 1, and with `ascending` strictly ascending within a sample. One pass over each;
// nothing is read outside them.
inline RowsFinding check_rows(const int64_t* offsets, int64_t samples, const int32_t* indices, int64_t count,
                              int64_t neurons, bool ascending) {
  if (offsets) {
    if (offsets[0] != 0) return {RowsFault::kOffsets, offsets[0]};
    for (int64_t b = 0; b < samples; ++b)
      if (offsets[b + 1] < offsets[b]) return {RowsFault::kOffsets, offsets[b + 1]};
    if (offsets[samples] != count) return {RowsFault::kOffsets, offsets[samples]};
  }
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = indices[i] < low ? indices[i] : low;
    high = indices[i] > high ? indices[i] : high;
  }
  if (count > 0 && (low < 0 || high >= neurons)) {
    for (int64_t i = 0; i < count; ++i)
      if (indices[i] < 0 || indices[i] >= neurons) return {RowsFault::kIndex, indices[i]};
  }
  for (int64_t b = 0; ascending && offsets && b < samples; ++b)
    for (int64_t i = offsets[b] + 1; i < offsets[b + 1]; ++i)
      if (indices[i] <= indices[i - 1]) return {RowsFault::kOrder, indices[i]};
  return {};
}

}  // namespace ssd::cpu
