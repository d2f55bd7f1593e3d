// The processor's floating-point mode: kernels run in the standard one (denormal numbers kept, rounding to nearest),
// whatever the calling thread has set, so that no result depends on which thread computes it.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ssd::cpu {

// Sets the standard mode of this thread, and puts the former one back at the end of its life.
class FloatMode {
 public:
  FloatMode() : before_(read()) {
    if (before_ != kStandard) write(kStandard);
  }
  ~FloatMode() {
    if (before_ != kStandard) write(before_);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kStandard = 0x1f80;                      // all exceptions masked, no FTZ, no DAZ
  static uint64_t read() { return _mm_getcsr() & ~uint64_t{0x3f}; }  // without the flags of past exceptions
  static void write(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kStandard = 0;
  static uint64_t read() {
    uint64_t mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(uint64_t mode) { __asm__ __volatile__("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr uint64_t kStandard = 0;
  static uint64_t read() { return kStandard; }
  static void write(uint64_t) {}
#endif
  uint64_t before_;
};

}  // namespace ssd::cpu
