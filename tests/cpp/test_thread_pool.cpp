// thread_pool.h: every thread runs every task once; writes before a run are seen in it and writes in it afterwards.
#include "ssd/thread_pool.h"

#include <vector>

#include "check.h"

using ssd::cpu::ThreadPool;

namespace {

void test_runs(int threads, int spin_us, int runs) {
  ThreadPool pool(threads, spin_us);
  CHECK(pool.threads() == threads);
  std::vector<long long> counts(threads), sums(threads);
  long long input = 0, expected = 0;
  for (int run = 1; run <= runs; ++run) {
    input = run;  // plain memory: the pool must publish it
    pool.run([&](int thread) {
      ++counts[thread];
      sums[thread] += input * (thread + 1);
    });
    for (int t = 0; t < threads; ++t) CHECK(counts[t] == run, "thread %d ran %lld of %d", t, counts[t], run);
    expected += run;
  }
  for (int t = 0; t < threads; ++t) CHECK(sums[t] == expected * (t + 1));
}

// A pause longer than the spin puts the workers to sleep: the next run must wake them.
void test_sleeping_workers() {
  ThreadPool pool(3, 0);
  std::vector<int> counts(3);
  for (int run = 0; run < 20; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    pool.run([&](int thread) {
      if (thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the caller sleeps, too
      ++counts[thread];
    });
  }
  for (const int count : counts) CHECK(count == 20);
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8}) {
    test_runs(threads, 50, 2000);
    test_runs(threads, 0, 500);
  }
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);  // ends without a single run
  test_sleeping_workers();
  std::printf("thread_pool.h: passed\n");
}
