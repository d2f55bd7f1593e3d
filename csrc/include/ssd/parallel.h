// Threads for single operations. They share OpenMP's threads with the caller's framework where the build has OpenMP,
// so two pools never fight for the cores; elsewhere they use this library's own pool.
// One thread opens no parallel region, so forked workers with one thread are safe.
#pragma once

#include "ssd/float_mode.h"

namespace ssd::cpu {

// Calls body(context, thread) for thread = 0 .. threads - 1, at once, and returns when all have ended.
// Work must be split by `thread` alone, never by timing: results may not depend on the schedule.
void parallel_run(int threads, void (*body)(void* context, int thread), void* context);

// The same for any callable `body(int thread)`, in the standard floating-point mode.
template <class Body>
void parallel(int threads, Body&& body) {
  if (threads <= 1) {
    FloatMode mode;
    body(0);
    return;
  }
  parallel_run(
      threads,
      [](void* context, int thread) {
        FloatMode mode;
        (*static_cast<Body*>(context))(thread);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The half-open part [begin, end) of [0, count) that thread `index` of `parts` owns, cut at multiples of `grain`.
struct Range {
  long long begin, end;
};
inline Range split_range(long long count, int parts, int index, long long grain = 1) {
  const long long blocks = (count + grain - 1) / grain;
  const long long begin = blocks * index / parts * grain, end = blocks * (index + 1) / parts * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace ssd::cpu
