// device.h for a C++ compiler: the same functions over an emulator of the machine, which the C++ tests link
// (tests/cpp/cuda/emulator.cpp). The memory accesses of kernels happen here, in code that sanitizers see; the
// emulator's own state lives there, in code that TSan does not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define SSD_DEVICE inline
#define SSD_KERNEL
#define SSD_LAUNCH_BOUNDS(threads, blocks)
#define SSD_UNROLL

// Under the names that CUDA has for them.
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
};
#define threadIdx (::ssd::cuda::model::thread_index())
#define blockIdx (::ssd::cuda::model::block_index())
#define blockDim (::ssd::cuda::model::block_size())
#define gridDim (::ssd::cuda::model::grid_size())

using std::exp;
using std::expm1;
using std::fmax;
using std::fmin;
using std::log;
using std::log1p;
using std::sqrt;

namespace ssd::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

namespace model {

// Where a primitive was called, for messages.
struct Place {
  const char *name, *file;
  int line;
};

const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
unsigned linear_lane();

int inside(int index, int size);  // aborts where it is not
void* shared_block(size_t bytes);
void meet_block(Place place);
int meet_block_count(bool flag, Place place);
void meet_named(int id, int threads, Place place);
void meet_warp(unsigned lanes, Place place);
void meet_grid(Place place);
// Every lane of `lanes` gives `bytes` (up to 32) and sees those of all; orders no memory.
const unsigned char* exchange(unsigned lanes, const void* value, size_t bytes, Place place);
constexpr size_t kSlot = 32;
// Another fiber may run here: at atomics, by the schedule's choice, and always while a flag is awaited.
void may_pause();
void pause();
// Copies under way. The bytes come at the last moment that is allowed.
void copy_begin(void* to, const void* from, bool valid, Place place);
void copy_commit_group();
struct Copy {
  void* to;
  const void* from;
  unsigned char bytes[16];
  bool valid;
};
// The next copy that must be there when at most `pending` groups may be under way; false when none is left.
bool copy_next(int pending, Copy* copy);
void fail(Place place, const char* what);

// A kernel of the test: `run(context)` in every thread.
void launch(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, void (*run)(void*), void* context);

template <class T>
T from_lane(unsigned lanes, T value, int lane, Place place) {
  static_assert(sizeof(T) <= kSlot && std::is_trivially_copyable<T>::value, "");
  const unsigned char* all = exchange(lanes, &value, sizeof(T), place);
  const int own = static_cast<int>(linear_lane());
  if (lane < 0 || lane > 31) lane = own;
  if (!(lanes >> lane & 1)) fail(place, "reads a lane outside its mask");
  T got;
  __builtin_memcpy(&got, all + static_cast<size_t>(lane) * kSlot, sizeof(T));
  return got;
}

template <class Reduce>
unsigned reduce(unsigned lanes, unsigned value, Place place, Reduce reduce) {
  const unsigned char* all = exchange(lanes, &value, sizeof(value), place);
  bool first = true;
  unsigned result = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    unsigned other;
    __builtin_memcpy(&other, all + static_cast<size_t>(l) * kSlot, sizeof(other));
    result = first ? other : reduce(result, other);
    first = false;
  }
  return result;
}

struct Fragment {
  uint32_t a[4], b[2];
};

inline float bf16_of_pair(uint32_t pair, int half) {
  const uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline float half_value(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? mantissa + 1024 : mantissa),
                           static_cast<int>(exponent ? exponent : 1) - 25);
}
inline float half_of_pair(uint32_t pair, int half) {
  return half_value(static_cast<uint16_t>(half ? pair >> 16 : pair & 0xffffu));
}

// The order in which a tensor core adds is its own affair: the model adds by the schedule's, so that a kernel whose
// result depends on it is found. value(operand, element, half) decodes; k elements, `pairs` of them per register.
int mma_rotation();
template <int kDepth, class Decode>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place, Decode decode) {
  Fragment mine;
  for (int i = 0; i < 4; ++i) mine.a[i] = a[i];
  for (int i = 0; i < 2; ++i) mine.b[i] = b[i];
  const unsigned char* all = exchange(kAllLanes, &mine, sizeof(mine), place);
  const int lane = static_cast<int>(linear_lane()), turn = mma_rotation();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    float sum = d[i];
    for (int step = 0; step < kDepth; ++step) {
      const int k = (step + turn) % kDepth;
      // A register of A holds row g or g + 8 and the first or second half of k.
      const int per = kDepth / 8, within = k % (kDepth / 2);
      Fragment left, right;
      __builtin_memcpy(&left, all + static_cast<size_t>(row % 8 * 4 + within / per) * kSlot, sizeof(left));
      __builtin_memcpy(&right, all + static_cast<size_t>(column * 4 + within / per) * kSlot, sizeof(right));
      const int half = k / (kDepth / 2);
      sum += decode(left.a[row / 8 + 2 * half], within % per) * decode(right.b[half], within % per);
    }
    d[i] = sum;
  }
}

}  // namespace model

#define SSD_PLACE(name) \
  model::Place { name, file, line }
#define SSD_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <class T>
T& shared_memory() {
  return *static_cast<T*>(model::shared_block(sizeof(T)));
}

inline void block_sync(SSD_CALLER) { model::meet_block(SSD_PLACE("block_sync")); }
inline int block_count(bool flag, SSD_CALLER) { return model::meet_block_count(flag, SSD_PLACE("block_count")); }
inline void named_sync(int id, int threads, SSD_CALLER) { model::meet_named(id, threads, SSD_PLACE("named_sync")); }
inline void warp_sync(unsigned lanes = kAllLanes, SSD_CALLER) { model::meet_warp(lanes, SSD_PLACE("warp_sync")); }
inline void grid_sync(SSD_CALLER) { model::meet_grid(SSD_PLACE("grid_sync")); }

template <class T>
T shuffle(T value, int lane, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::from_lane(lanes, value, lane & 31, SSD_PLACE("shuffle"));
}
template <class T>
T shuffle_xor(T value, int mask, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::from_lane(lanes, value, static_cast<int>(model::linear_lane()) ^ mask, SSD_PLACE("shuffle_xor"));
}
template <class T>
T shuffle_up(T value, int delta, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::from_lane(lanes, value, static_cast<int>(model::linear_lane()) - delta, SSD_PLACE("shuffle_up"));
}
inline unsigned ballot(bool flag, unsigned lanes = kAllLanes, SSD_CALLER) {
  const unsigned bit = flag ? 1u << model::linear_lane() : 0u;
  return model::reduce(lanes, bit, SSD_PLACE("ballot"), [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned match_any(unsigned value, unsigned lanes = kAllLanes, SSD_CALLER) {
  const unsigned char* all = model::exchange(lanes, &value, sizeof(value), SSD_PLACE("match_any"));
  unsigned same = 0;
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1 && !__builtin_memcmp(all + static_cast<size_t>(l) * model::kSlot, &value, sizeof(value)))
      same |= 1u << l;
  return same;
}
inline unsigned reduce_add(unsigned value, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::reduce(lanes, value, SSD_PLACE("reduce_add"), [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned reduce_max(unsigned value, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::reduce(lanes, value, SSD_PLACE("reduce_max"), [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned reduce_min(unsigned value, unsigned lanes = kAllLanes, SSD_CALLER) {
  return model::reduce(lanes, value, SSD_PLACE("reduce_min"), [](unsigned a, unsigned b) { return a < b ? a : b; });
}

template <class T>
T atomic_add(T* p, T value) {
  model::may_pause();
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
template <class T>
T atomic_max(T* p, T value) {
  model::may_pause();
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(p, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomic_min(T* p, T value) {
  model::may_pause();
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(p, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomic_or(T* p, T value) {
  model::may_pause();
  return __atomic_fetch_or(p, value, __ATOMIC_RELAXED);
}
template <class T>
T atomic_exchange(T* p, T value) {
  model::may_pause();
  return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);
}
inline unsigned load_acquire(const unsigned* p) {
  model::pause();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void store_release(unsigned* p, unsigned value) {
  model::may_pause();
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
inline unsigned add_acq_rel(unsigned* p, unsigned value) {
  model::may_pause();
  return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
}

// The target is NaN from the request on, and the bytes come when they must: whoever looks early sees it, and TSan sees
// a write at both ends. The source is read at both ends too: it may not change under way.
inline void copy_async16(void* to, const void* from, bool valid = true, SSD_CALLER) {
  model::copy_begin(to, from, valid, SSD_PLACE("copy_async16"));
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(to)[i] = 0xffffffffu;
}
inline void copy_commit() { model::copy_commit_group(); }
template <int kPending>
void copy_wait(SSD_CALLER) {
  model::Copy copy;
  while (model::copy_next(kPending, &copy)) {
    for (int i = 0; i < 4; ++i) {
      uint32_t word = 0;
      if (copy.valid) {
        word = static_cast<const uint32_t*>(copy.from)[i];
        if (__builtin_memcmp(&word, copy.bytes + 4 * i, 4)) model::fail(SSD_PLACE("copy_wait"), "a source has changed");
      }
      static_cast<uint32_t*>(copy.to)[i] = word;
    }
  }
}

inline void mma_bf16_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SSD_CALLER) {
  model::mma<16>(d, a, b, SSD_PLACE("mma_bf16_k16"), model::bf16_of_pair);
}
inline void mma_half_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SSD_CALLER) {
  model::mma<16>(d, a, b, SSD_PLACE("mma_half_k16"), model::half_of_pair);
}
// A tensor core ignores the low 13 bits of a tf32 operand.
inline void mma_tf32_k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SSD_CALLER) {
  model::mma<8>(d, a, b, SSD_PLACE("mma_tf32_k8"), [](uint32_t bits, int) {
    bits &= 0xffffe000u;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  });
}

inline int count_ones(unsigned bits) { return __builtin_popcount(bits); }
inline int leading_zeros(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline double bits_double(uint64_t bits) {
  double value;
  __builtin_memcpy(&value, &bits, 8);
  return value;
}
inline uint64_t double_bits(double value) {
  uint64_t bits;
  __builtin_memcpy(&bits, &value, 8);
  return bits;
}

inline float half_value(uint16_t bits) { return model::half_value(bits); }
// To nearest even: scaled so that the last bit kept is 1, nearbyint rounds.
inline uint16_t half_bits(float value) {
  const uint32_t sign = float_bits(value) >> 16 & 0x8000u;
  const float size = std::fabs(value);
  if (size != size) return 0x7fffu;
  if (size >= 65520.f) return static_cast<uint16_t>(sign | 0x7c00u);
  const int power = size < 0x1p-14f ? -14 : std::ilogb(size);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - power)));  // up to 2048
  return static_cast<uint16_t>(sign | static_cast<uint32_t>((power + 14) * 1024 + steps));
}

inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i) {
    const float value = i ? high : low;
    const uint32_t bits = float_bits(value);
    pair |= (value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) << 16 * i;
  }
  return pair;
}

inline const char* use_device(int) { return nullptr; }
inline const char* multiprocessors(int, int* count) {
  *count = 2;
  return nullptr;
}

namespace model {
template <class... P, class... A>
const char* launch_all(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes, bool cooperative, A... arguments) {
  auto call = [=] { kernel(static_cast<P>(arguments)...); };
  model::launch(
      grid, block, bytes, cooperative, [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
  return nullptr;
}
}  // namespace model

template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*, A... arguments) {
  return model::launch_all(kernel, grid, block, shared_bytes, false, arguments...);
}
template <class... P, class... A>
const char* launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*,
                               A... arguments) {
  return model::launch_all(kernel, grid, block, shared_bytes, true, arguments...);
}

}  // namespace ssd::cuda
