#include "ssd/team.h"

#include <chrono>
#include <utility>

#include "ssd/float_mode.h"

namespace ssd::cpu {
namespace {

bool claimable(uint64_t ticket) { return (ticket & 0xffff) < (ticket >> 16 & 0xffff); }

// Spins until ready() or the time is up; true when ready.
template <class Ready>
bool spin(int spin_us, Ready ready) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ __volatile__("yield");
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

Team::Team(int threads, int spin_us) : spin_us_(spin_us) {
  for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool Team::claim(int thread) {
  uint64_t ticket = ticket_.load();
  while (claimable(ticket)) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    const int chunk = static_cast<int>(ticket & 0xffff), chunks = static_cast<int>(ticket >> 16 & 0xffff);
    try {
      body_(context_, chunk, thread);  // they stay as they are until this chunk is done
    } catch (...) {                    // the caller's to handle: out of memory, above all
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (done_.fetch_add(1) + 1 == chunks && caller_sleeps_.load()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }  // the caller between its test and its sleep holds it
      finished_.notify_one();
    }
    return true;
  }
  return false;
}

void Team::run(int chunks, void (*body)(void*, int, int), void* context) {
  body_ = body;
  context_ = context;
  done_.store(0);
  ticket_.store(static_cast<uint64_t>(++phase_) << 32 | static_cast<uint64_t>(chunks) << 16);  // publishes the above
  if (sleepers_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a worker between its test and its sleep holds it
    wake_.notify_all();
  }
  while (claim(0)) {
  }
  const auto finished = [&] { return done_.load() == chunks; };
  if (!spin(spin_us_, finished)) {
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    finished_.wait(lock, finished);
    caller_sleeps_.store(false);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::work(int thread) {
  const FloatMode mode;
  const auto ready = [this] { return stop_.load() || claimable(ticket_.load()); };
  while (!stop_.load()) {
    if (claim(thread) || spin(spin_us_, ready)) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, ready);
    sleepers_.fetch_sub(1);
  }
}

}  // namespace ssd::cpu
