#include "ssd/thread_pool.h"

#include <chrono>

namespace ssd::cpu {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Spins until ready() or the time is up; true when ready.
template <class Ready>
bool spin(int spin_us, Ready ready) {
  if (ready()) return true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_us) : spin_us_(spin_us) {
  for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(void (*body)(void*, int), void* context) {
  if (workers_.empty()) {
    body(context, 0);
    return;
  }
  body_ = body;
  context_ = context;
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1);  // publishes body_ and context_
  if (sleepers_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a worker between its test and its sleep holds it
    wake_.notify_all();
  }
  body(context, 0);
  const auto finished = [this] { return running_.load(std::memory_order_acquire) == 0; };
  if (spin(spin_us_, finished)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_.store(true);
  done_.wait(lock, [this] { return running_.load() == 0; });
  caller_sleeps_.store(false);
}

void ThreadPool::work(int thread) {
  unsigned seen = 0;
  for (;;) {
    const auto changed = [&] { return generation_.load() != seen; };
    if (!spin(spin_us_, changed)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, changed);
      sleepers_.fetch_sub(1);
    }
    seen = generation_.load();
    if (stop_.load()) return;
    body_(context_, thread);
    if (running_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      done_.notify_one();
    }
  }
}

}  // namespace ssd::cpu
