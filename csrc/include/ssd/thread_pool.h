// The engine's threads: a short task costs a spin and no system call, and a busy neighbour costs no more than its
// share, because every wait gives up spinning after a bounded time and sleeps (futex).
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace ssd::cpu {

class ThreadPool {
 public:
  // threads: workers in all, the calling thread included. `spin_us`: how long a wait spins before it sleeps.
  explicit ThreadPool(int threads, int spin_us = 50);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(context, thread) for every thread of the pool; the caller is thread 0. Not reentrant.
  void run(void (*body)(void* context, int thread), void* context);

  template <class Body>
  void run(Body&& body) {
    run([](void* context, int thread) { (*static_cast<Body*>(context))(thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void work(int thread);

  std::vector<std::thread> workers_;
  std::atomic<unsigned> generation_{0};  // bumped once per run; workers wait for a new value
  std::atomic<int> running_{0};          // workers that have not finished the present run
  std::atomic<int> sleepers_{0};         // workers asleep in wake_
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int spin_us_;
};

}  // namespace ssd::cpu
