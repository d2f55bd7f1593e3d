// CHECK stays on in every build; a failed one says where and ends the test.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ssd/simd_level.h"

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, " " __VA_ARGS__);                               \
      std::fprintf(stderr, "\n");                                          \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace ssd::test {

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 16);
  }
  int below(int bound) { return static_cast<int>(next() % static_cast<uint32_t>(bound)); }
  double uniform() { return next() / 4294967296.0 * 2 - 1; }

 private:
  uint64_t state_;
};

template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// Ends the test as skipped where this processor lacks the level it was compiled for.
inline void require_level(const char* name) {
  cpu::SimdLevel level;
  if (!cpu::parse_simd_level(name, &level) || static_cast<int>(level) > static_cast<int>(cpu::best_simd_level())) {
    std::printf("skipped: this processor has no %s\n", name);
    std::exit(77);
  }
}

}  // namespace ssd::test

#define SSD_STRING_OF(x) #x
#define SSD_STRING(x) SSD_STRING_OF(x)
