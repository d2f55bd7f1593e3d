// Phases for threads that run the same program: every thread calls the same for_each / single in the same order.
// A phase is cut into chunks that are claimed one by one, so a thread that lost its core delays the others by one
// chunk and not by its whole share. Waits spin for a bounded time, then sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace ssd::cpu {

class Team {
 public:
  explicit Team(int threads, int spin_us = 50) : threads_(threads), spin_us_(spin_us) {}
  int threads() const { return threads_; }

  // A thread's place in the program; one per thread, made when it enters.
  struct Member {
    unsigned phase = 0;
  };

  // body(chunk) for chunk = 0 .. chunks - 1, each once, on whichever thread claims it; then last() once; then all go
  // on.
  template <class Body, class Last>
  void for_each(Member& member, int chunks, Body&& body, Last&& last) {
    std::atomic<int>& next = next_[member.phase % kCounters];
    for (;;) {
      const int chunk = next.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks) break;
      body(chunk);
    }
    wait(member, last);
  }
  template <class Body>
  void for_each(Member& member, int chunks, Body&& body) {
    for_each(member, chunks, body, [] {});
  }

 private:
  static constexpr unsigned kCounters = 4;

  template <class Last>
  void wait(Member& member, Last&& last) {
    const unsigned phase = member.phase++;
    if (threads_ == 1) {
      last();
      next_[phase % kCounters].store(0, std::memory_order_relaxed);
      return;
    }
    const unsigned generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1) + 1 == threads_) {
      last();
      next_[phase % kCounters].store(0, std::memory_order_relaxed);  // all have left it; used again four phases on
      arrived_.store(0, std::memory_order_relaxed);
      generation_.fetch_add(1);
      if (sleepers_.load() > 0) {
        {
          std::lock_guard<std::mutex> lock(mutex_);
        }  // a thread between its test and its sleep holds it
        wake_.notify_all();
      }
      return;
    }
    const auto done = [&] { return generation_.load() != generation; };
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    do {
      for (int i = 0; i < 64; ++i) {
        if (done()) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, done);
    sleepers_.fetch_sub(1);
  }

  const int threads_, spin_us_;
  std::atomic<int> next_[kCounters] = {};
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace ssd::cpu
