// What the certificates rely on: a movement that update_row returns, raised by kMovementGrowth, bounds what the score
// of an input of norm 1 + 1e-4 can have changed by.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "engine/state.h"

using namespace ssd::cpu;
using ssd::test::Random;

int main() {
  Random random(4);
  for (int level = 0; level <= static_cast<int>(best_simd_level()); ++level) {
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
