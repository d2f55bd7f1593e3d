// parallel.h: every part runs once, whatever number of threads the machine grants; ranges cover the work exactly.
#include "ssd/parallel.h"

#include <vector>

#include "check.h"

using namespace ssd::cpu;

int main() {
  for (const int threads : {1, 2, 3, 17}) {
    std::vector<int> counts(threads);
    for (int run = 0; run < 200; ++run) parallel(threads, [&](int part) { ++counts[part]; });
    for (int part = 0; part < threads; ++part) CHECK(counts[part] == 200, "part %d of %d", part, threads);
  }
  for (const long long count : {0LL, 1LL, 5LL, 63LL, 64LL, 1000LL, (1LL << 33) + 5}) {
    for (const int parts : {1, 2, 3, 7}) {
      for (const long long grain : {1LL, 4LL, 64LL}) {
        long long next = 0;
        for (int part = 0; part < parts; ++part) {
          const Range range = split_range(count, parts, part, grain);
          CHECK(range.begin == next && range.begin <= range.end);
          CHECK(range.begin == count || range.begin % grain == 0);
          next = range.end;
        }
        CHECK(next == count, "%lld in %d parts of grain %lld", count, parts, grain);
      }
    }
  }
  std::printf("parallel.h: passed\n");
}
