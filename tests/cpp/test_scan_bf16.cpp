// select/scan_bf16.h: every neuron whose canonical score passes a row's limit is a candidate, whatever the data; and
// the rounding and the transposition are those of their definitions.
#include "select/scan_bf16.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu;
using namespace ssd::cpu::SSD_LEVEL;
using ssd::test::Random;

namespace {

float round_to_bf16(float x) {
  BFloat16 rounded;
  from_acc(x, &rounded);
  return to_acc(rounded);
}

// kind 0: normal-sized; 1: half way between two bf16 numbers, so every rounding error is the largest; 2: a common large
// part and small differences; 3: many magnitudes; 4: NaN and Inf among them; 5: tiny; 6: huge.
float sample(Random& random, int kind) {
  const float u = static_cast<float>(random.uniform());
  switch (kind) {
    case 1:
      return std::ldexp(1 + static_cast<float>(random.below(128)) / 128 + 0x1p-8f * 0.9999f, random.below(3) - 1);
    case 2:
      return 1 + u * 1e-4f;
    case 3:
      return std::ldexp(u, random.below(60) - 30);
    case 4:
      return random.below(400) == 0 ? (random.below(2) ? NAN : INFINITY) : u;
    case 5:
      return u * 1e-25f;
    case 6:
      return u * 1e20f;
    default:
      return u;
  }
}

void test_block(Random& random, int kind_x, int kind_w, bool affine) {
  const int rows = 1 + random.below(11), neurons = 1 + random.below(64), size = 1 + random.below(150);
  const ptrdiff_t stored = stored_pairs(size);
  std::vector<float> x(rows * size), w(neurons * size), errors(rows), roundeds(rows), certain(rows), limits(rows);
  for (float& value : x) value = sample(random, kind_x);
  for (float& value : w) value = sample(random, kind_w);
  if (random.below(4) == 0)
    for (int d = 0; d < size; ++d) w[random.below(neurons) * size + d] *= 1e4f;
  Arena arena(static_cast<size_t>(stored) * 4 * (rows + 80 + 2));
  CHECK(arena.ok());
  uint32_t *x_pairs = arena.take<uint32_t>(rows * stored), *pairs = arena.take<uint32_t>(stored * 64);
  uint32_t* scratch = arena.take<uint32_t>(stored * 16);
  RoundedRows block_x{x_pairs, rows, size, errors.data(), roundeds.data(), certain.data()};
  for (int r = 0; r < rows; ++r) round_row(&x[r * size], size, x_pairs + r * stored, &errors[r], &roundeds[r]);
  alignas(64) float scale[64], shift[64];
  for (int j = 0; j < 64; ++j) {
    scale[j] = static_cast<float>(random.uniform() + 1.5);
    shift[j] = static_cast<float>(random.uniform());
  }
  RoundedBlock block{pairs, neurons, affine ? scale : nullptr, affine ? shift : nullptr, 0, 0, 0};
  round_block(w.data(), size, size, scratch, &block);
  for (int j = 0; j < neurons; ++j)
    for (int d = 0; d < size; ++d) {
      const uint32_t pair = pairs[d / 2 * 64 + j];
      const float stored_value = bits_to_float(d % 2 ? pair & 0xffff0000u : pair << 16);
      const float expected = round_to_bf16(w[j * size + d]);
      const bool flushed = std::fabs(w[j * size + d]) < 0x1p-126f;
      CHECK(stored_value == expected || flushed || std::isnan(expected), "neuron %d entry %d", j, d);
    }

  std::vector<float> scores(rows * neurons);
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < neurons; ++j) {
      float score = dot(&x[r * size], &w[j * size], size);
      if (affine) score = std::fma(score, scale[j], shift[j]);
      scores[r * neurons + j] = score;
    }
  for (int r = 0; r < rows; ++r) {  // a limit just below or at some score, where a wrong bound shows
    const float score = scores[r * neurons + random.below(neurons)];
    limits[r] = random.below(5) == 0 ? NAN : random.below(2) ? score : std::nextafter(score, -INFINITY);
  }
  std::vector<char> named(rows * neurons);
  int last_row = -1, last_neuron = -1;
  auto candidate = [&](int row, int neuron) {
    CHECK(row < rows && neuron < neurons);
    CHECK(row > last_row || (row == last_row && neuron > last_neuron));
    last_row = row;
    last_neuron = neuron;
    named[row * neurons + neuron] = 1;
  };
  scan_rounded(block_x, block, limits.data(), 1, nullptr, 0, candidate);
  for (int i = 0; i < rows * neurons; ++i)
    CHECK(named[i] || scores[i] <= limits[i / neurons], "kinds %d %d: score %a, limit %a", kind_x, kind_w,
          static_cast<double>(scores[i]), static_cast<double>(limits[i / neurons]));
}

}  // namespace

int main() {
  ssd::test::require_level(SSD_STRING(SSD_LEVEL));
  Random random(11);
  for (int round = 0; round < 40; ++round)
    for (int kind_x = 0; kind_x < 7; ++kind_x)
      for (int kind_w = 0; kind_w < 7; ++kind_w) test_block(random, kind_x, kind_w, round % 2);
  std::printf("scan_bf16.h: passed\n");
}
