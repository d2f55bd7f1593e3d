// The engine's certified bf16 preselection keeps what the fp32 filter keeps, bit for bit, where scores stand at the
// limit or an ulp beside it and the rounding errors of bf16 all point the same way.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "engine/kernels.h"

using namespace ssd::cpu;
using ssd::test::Random;

namespace {

constexpr int kRows = 9;

// kind 0: anything; 1: every entry just short of half way to the next bf16 number, so that all are rounded down and,
// with equal entries, the bound of Cauchy and Schwarz is met; 2: the same, rounded up; 3: bf16 numbers, no rounding;
// 4: one entry, and others that a sum in one accumulator loses.
float entry(Random& random, int kind, int64_t d) {
  const float size = std::ldexp(1.f, random.below(2));
  switch (kind) {
    case 1:
      return 1 + 0x1p-8f * 0.9999f;
    case 2:
      return 1 + 0x1p-8f * 1.0001f;
    case 3:
      return size * (1 + static_cast<float>(random.below(128)) / 128);
    case 4:
      return d == 0 ? 1.f : 0x1.fp-25f;
    default:
      return static_cast<float>(std::fabs(random.uniform()));
  }
}

void check(const SdmlpKernels& kernel, Random& random, int kind_x, int kind_w) {
  const int neurons = 1 + random.below(64);
  const int64_t inputs = 1 + random.below(200);
  std::vector<float> x(kRows * inputs), w(64 * inputs), gaba(64), scores(kRows * 64), floors(kRows);
  const float shrink = 1 / std::sqrt(static_cast<float>(inputs));
  for (int64_t i = 0; i < kRows * inputs; ++i) x[i] = entry(random, kind_x, i % inputs) * (kind_x ? 1 : shrink);
  for (int64_t i = 0; i < 64 * inputs; ++i) w[i] = kind_w == 4 ? 1.f : entry(random, kind_w, 0) * (kind_w ? 1 : shrink);
  for (float& g : gaba) g = random.below(2) ? 1.f : static_cast<float>(std::fabs(random.uniform()));
  const float* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = &x[r * inputs];
  kernel.score_block(rows, kRows, w.data(), neurons, inputs, scores.data(), 64);
  const float gaps[] = {0.f, 1e-3f, 0.1f, 30.f};
  const float gap = gaps[random.below(4)];
  for (int r = 0; r < kRows; ++r) {  // g floor - gap passes the score of some neuron ulp by ulp
    const int j = random.below(neurons);
    float floor = (scores[r * 64 + j] + gap) / (gaba[j] > 0.1f ? gaba[j] : 1.f);
    for (int step = random.below(5); step > 0; --step) floor = std::nextafter(floor, 0.f);
    floors[r] = floor;
  }

  std::vector<char> memory(static_cast<size_t>(kernel.preselect_bytes(kRows, inputs)) + 64);
  void* state = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  kernel.preselect_load(state, x.data(), kRows, inputs);
  std::vector<int32_t> row(64 * kRows), index(64 * kRows), expected(64 + 16);
  std::vector<float> score(64 * kRows), expected_score(64 + 16);
  int64_t candidates = 0;
  const int found = kernel.preselect(state, w.data(), neurons, 0, gaba.data(), floors.data(), gap, 100, row.data(),
                                     index.data(), score.data(), &candidates);
  CHECK(candidates >= found);
  for (int r = 0; r < kRows; ++r) {
    const int wanted = kernel.filter(&scores[r * 64], gaba.data(), neurons, floors[r], gap, 100, expected.data(),
                                     expected_score.data());
    int at = 0;
    for (int e = 0; e < found; ++e) {
      if (row[e] != r) continue;
      CHECK(at < wanted && index[e] == expected[at] && score[e] == expected_score[at], "row %d: neuron %d", r,
            index[e]);
      ++at;
    }
    CHECK(at == wanted, "kinds %d %d, %d inputs, gap %g: %d of %d survivors", kind_x, kind_w, static_cast<int>(inputs),
          static_cast<double>(gap), at, wanted);
  }
}

}  // namespace

int main() {
  ssd::test::require_level("avx512bf16");
  const SdmlpKernels& kernel = sdmlp_kernels(SimdLevel::kAvx512Bf16);
  Random random(3);
  for (int round = 0; round < 300; ++round)
    for (int kind_x = 0; kind_x < 5; ++kind_x)
      for (int kind_w = 0; kind_w < 5; ++kind_w) check(kernel, random, kind_x, kind_w);
  std::printf("preselect: passed\n");
}
