// ActiveRows: what becomes of the lists once they are complete.
#include "ssd/active_rows.h"

#include <cstdlib>
#include <cstring>
#include <numeric>

#include "ssd/parallel.h"

namespace ssd::cpu {

ActiveRows::~ActiveRows() {
  for (int part = 0; part < parts; ++part) {
    std::free(lists[part].values);
    std::free(lists[part].indices);
  }
  delete[] lists;
}

int64_t ActiveRows::count() const {
  int64_t sum = 0;
  for (int part = 0; part < parts; ++part) sum += lists[part].count;
  return sum;
}

void ActiveRows::copy(void* values, int32_t* indices) const {
  constexpr int64_t kWorthThreads = 1 << 16;  // entries
  const auto copy_part = [&](int part) {
    const int64_t begin = std::accumulate(lists, lists + part, int64_t{0},
                                          [](int64_t sum, const List& list) { return sum + list.count; });
    const size_t count = static_cast<size_t>(lists[part].count);
    if (!count) return;
    std::memcpy(static_cast<char*>(values) + static_cast<size_t>(begin) * value_size, lists[part].values,
                count * value_size);
    std::memcpy(indices + begin, lists[part].indices, count * sizeof(int32_t));
  };
  int64_t total = 0;
  for (int part = 0; part < parts; ++part) total += lists[part].count;
  if (total >= kWorthThreads) return parallel(parts, [&](int part) { copy_part(part); });
  for (int part = 0; part < parts; ++part) copy_part(part);
}

}  // namespace ssd::cpu
