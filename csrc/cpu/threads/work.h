// How single operations share out work, and their scratch memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace ssd::cpu {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

// No more threads than have `worth` units of work each; waking one costs a few microseconds.
inline int worthwhile_threads(int threads, double work, double worth) {
  const double parts = work / worth;
  const int useful = parts < 1 ? 1 : parts > 1024 ? 1024 : static_cast<int>(parts);
  return threads < useful ? threads : useful;
}

}  // namespace ssd::cpu
