// Memory of large tables. Rows that are read at random miss the processor's table of pages more often than its caches,
// so what is large asks for huge pages. A request: where the system refuses it, only speed is lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssd::cpu {

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kLargeTable = 2 * kHugePage;  // smaller ones are left as they are

// Asks for huge pages within [memory, memory + bytes); what has been written already moves to them (from Linux 6.1 on).
inline void ask_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLargeTable) return;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers do not name
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage,
                  end = (first + bytes) / kHugePage * kHugePage;
  if (begin >= end || madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) != 0) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

// Rows that start with a cache line: what vectors read a line at a time must not straddle two. Large tables start with
// a huge page.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  static std::align_val_t alignment(size_t n) {
    return std::align_val_t{n * sizeof(T) < kLargeTable ? size_t{64} : kHugePage};
  }
  T* allocate(size_t n) {
    T* memory = static_cast<T*>(::operator new(n * sizeof(T), alignment(n)));
    ask_huge_pages(memory, n * sizeof(T));
    return memory;
  }
  void deallocate(T* p, size_t n) { ::operator delete(p, alignment(n)); }
  template <class U>
  bool operator==(const LineAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const LineAllocator<U>&) const {
    return false;
  }
};
using Floats = std::vector<float, LineAllocator<float>>;

}  // namespace ssd::cpu
