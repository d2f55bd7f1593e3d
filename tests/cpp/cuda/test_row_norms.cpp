// Norms of rows, bitwise, for sizes that divide nothing.
#include "cases.h"
#include "ssd/row_norms_cuda.h"

int main() {
  using namespace ssd;
  for (int i = 0; i < test::kCases; ++i) {
    test::Random random(static_cast<uint64_t>(i));
    const int rows = i % 7 == 0 ? i / 7 % 2 : 1 + random.below(40), cols = random.below(70), stride = cols + i % 3;
    std::vector<float> x(static_cast<size_t>(rows * stride));
    for (float& value : x) value = static_cast<float>(random.uniform());
    if (i % 5 == 1 && !x.empty()) x[x.size() / 2] = NAN;
    for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
      cuda::emulator::use(schedule);
      std::vector<float> norms = test::unwritten<float>(rows);
      CHECK(!cuda::row_norms({x.data(), rows, cols, stride, norms.data(), 0, nullptr}));
      for (int r = 0; r < rows; ++r) {
        const float* row = x.data() + r * stride;
        CHECK(test::same(norms[r], std::sqrt(test::canonical_dot(row, row, cols))), "case %d row %d", i, r);
      }
    }
  }
}
