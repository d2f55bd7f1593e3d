// What the certificates rely on: a movement that update_row returns, raised by kMovementGrowth, bounds what the score
// of an input of norm 1 + 1e-4 can have changed by.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "engine/state.h"

using namespace ssd::cpu;
using ssd::test::Random;

namespace {

// A row of unit norm is pushed to and fro; the bound is never below its distance from the era's start, and small again
// where the row has come back. keep changes on the way, as when many rows move; `most` 0: there is no room.
void check_era(SimdLevel level) {
  Random random(7);
  const SdmlpKernels& kernel = sdmlp_kernels(level);
  for (const int64_t inputs : {1, 7, 40, 300}) {
    for (const int64_t most : {0, 1}) {
      for (const double near : {0.0, 0.01, 10.0}) {
        std::vector<float> row(inputs), gradient(inputs), old(inputs);
        for (float& w : row) w = static_cast<float>(std::fabs(random.uniform()) + .1);
        kernel.update_row(row.data(), gradient.data(), 0.f, inputs, row.data(), old.data());
        EraRows era;
        era.begin(1);
        const std::vector<float> start = row;
        double bound = 0, path = 0;
        for (int step = 0; step < 60; ++step) {
          // The first steps are taken before an old place is kept.
          for (float& g : gradient) g = static_cast<float>(random.uniform() + (step / 20 % 2 ? -.5 : .5));
          const std::vector<float> before = row;
          bound =
              era.step(kernel, 0, row.data(), gradient.data(), 1e-3f, inputs, bound, near, step >= 3, most, old.data());
          double square = 0, moved = 0;
          for (int64_t d = 0; d < inputs; ++d) {
            const double far = static_cast<double>(row[d]) - start[d], change = static_cast<double>(row[d]) - before[d];
            square += far * far;
            moved += change * change;
          }
          path += std::sqrt(moved);
          CHECK(bound >= std::sqrt(square) * (1 + 1e-4), "%s, %d inputs, near %g, step %d: %.17g, is %.17g",
                simd_level_name(level), static_cast<int>(inputs), near, step, bound, std::sqrt(square));
          CHECK(bound <= path * (1 + 3e-4), "%.17g, the path is %.17g", bound, path);
        }
        if (inputs > 1 && most > 0) CHECK(bound < .8 * path, "%.17g, the path is %.17g", bound, path);
      }
    }
  }
}

}  // namespace

int main() {
  Random random(4);
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level) {
    check_era(static_cast<SimdLevel>(level));
    const SdmlpKernels& kernel = sdmlp_kernels(static_cast<SimdLevel>(level));
    for (int round = 0; round < 300; ++round) {
      const int64_t inputs = 1 + random.below(round % 10 ? 300 : 4000);
      std::vector<float> row(inputs), gradient(inputs);
      for (float& w : row) w = static_cast<float>(std::fabs(random.uniform()));
      for (float& g : gradient) g = static_cast<float>(random.uniform());
      const std::vector<float> before = row;
      const float step = std::ldexp(1.f, -random.below(20));
      std::vector<float> old(inputs);
      const double returned = kernel.update_row(row.data(), gradient.data(), step, inputs, before.data(), old.data());
      double square = 0, norm2 = 0;
      for (int64_t d = 0; d < inputs; ++d) {
        const double change = static_cast<double>(row[d]) - before[d];
        square += change * change;
        norm2 += static_cast<double>(row[d]) * row[d];
      }
      CHECK(returned * kMovementGrowth >= std::sqrt(square) * (1 + 1e-4), "%s, %d inputs: %.17g, moved by %.17g",
            simd_level_name(static_cast<SimdLevel>(level)), static_cast<int>(inputs), returned, std::sqrt(square));
      CHECK(std::fabs(norm2 - 1) < 1e-5);
    }
  }
  std::printf("engine kernels: passed\n");
}
