// The engine's threads. One thread runs the program; a phase of it is cut into chunks that all threads claim one by
// one. The phase ends when every chunk is done, not when every thread has come by: a thread that lost its core holds up
// at most the chunk it was working on. Waits spin for a bounded time, then sleep (futex).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace ssd::cpu {

class Team {
 public:
  // threads: in all, the calling one (thread 0) included. `spin_us`: how long a wait spins before it sleeps.
  explicit Team(int threads, int spin_us = 50);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(chunk, thread) for chunk = 0 .. chunks - 1, each once, on whichever thread claims it. Returns when all are
  // done, and throws what the first body that failed threw. For one calling thread at a time; a body may not call
  // for_each. The workers run in the standard floating-point mode (float_mode.h).
  template <class Body>
  void for_each(int chunks, Body&& body) {
    if (workers_.empty() || chunks <= 1) {
      for (int chunk = 0; chunk < chunks; ++chunk) body(chunk, 0);
      return;
    }
    if (chunks > kMostTickets) {  // several chunks to a ticket; not by for_each, whose body's type would grow for ever
      const int share = (chunks + kMostTickets - 1) / kMostTickets;
      auto several = [&](int ticket, int thread) {
        for (int c = ticket * share, end = c + share < chunks ? c + share : chunks; c < end; ++c) body(c, thread);
      };
      start((chunks + share - 1) / share, several);
      return;
    }
    start(chunks, body);
  }

 private:
  static constexpr int kMostTickets = 0xffff;

  template <class Body>
  void start(int chunks, Body&& body) {
    run(
        chunks,
        [](void* context, int chunk, int thread) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(chunk, thread);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  void run(int chunks, void (*body)(void*, int, int), void* context);
  void work(int thread);
  bool claim(int thread);  // does one chunk; false when none is left

  std::vector<std::thread> workers_;
  // Phase number (32 bits), chunks (16), next chunk (16): a claim is one compare-and-swap, and fails in another phase.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> done_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  void (*body_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;  // of this phase; guarded by mutex_
  uint32_t phase_ = 0;
  int spin_us_;
};

}  // namespace ssd::cpu
