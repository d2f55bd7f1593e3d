// Where the rows of a range of neurons were when they first moved in this era. A row's distance from there bounds how
// far scores have moved; between two looks at its old place, the path it takes is added, by the triangle inequality.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kernels.h"
#include "engine/pages.h"
#include "engine/policy.h"

namespace ssd::cpu {

// A score moves by |x| times its row's movement, |x| is at most 1 + 1e-4, and a movement's own computation is rounded,
// by less than 1e-4 of it for rows of up to 10 000 inputs.
constexpr double kMovementGrowth = 1.0 + 2.1e-4;

struct EraRows : EnginePolicy {
  Floats rows;                   // (kept, D)
  std::vector<double> distance;  // (kept,) how far each may have been from its place at the era's start then
  std::vector<uint8_t> unread;   // (kept,) moves since the old place was last read
  std::vector<int32_t> place;    // (neurons,) place among them or -1

  void begin(int64_t neurons) {
    rows.clear();
    distance.clear();
    unread.clear();
    place.assign(neurons, -1);
  }

  // Steps a row as SdmlpKernels::update_row does; returns a bound of its distance from its place at the era's start,
  // of which `before` is a bound until now. Where that is below `near`, the old place is read every few moves only.
  // keep: keep an old place where there is none yet, among `most` at the most. old: (D,) scratch.
  double step(const SdmlpKernels& kernel, int64_t local, float* row, const float* gradient, float step, int64_t D,
              double before, double near, bool keep, int64_t most, float* old) {
    const auto move = [&](const float* from) {
      return kernel.update_row(row, gradient, step, D, from, old) * kMovementGrowth;
    };
    if (!keep) return before + move(row);
    int32_t& at = place[local];
    if (at < 0) {
      if (static_cast<int64_t>(distance.size()) >= most) return before + move(row);
      at = static_cast<int32_t>(distance.size());
      distance.push_back(before);
      unread.push_back(0);
      rows.insert(rows.end(), row, row + D);
    }
    if (unread[at] + 1 < kEraReadEvery && before < near) {
      ++unread[at];
      return before + move(row);
    }
    unread[at] = 0;
    return distance[at] + move(&rows[at * D]);
  }
};

}  // namespace ssd::cpu
