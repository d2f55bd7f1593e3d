// team.h: every chunk of a phase is done once, by whichever thread; writes before a phase are seen in it and its writes
// afterwards.
#include "ssd/team.h"

#include <atomic>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "check.h"

using ssd::cpu::Team;

namespace {

void test_phases(int threads, int spin_us, int phases) {
  Team team(threads, spin_us);
  CHECK(team.threads() == threads);
  constexpr int kMost = 37;
  std::vector<long long> counts(kMost), sums(kMost), used(threads);
  long long input = 0, expected = 0;
  for (int phase = 1; phase <= phases; ++phase) {
    input = phase;  // plain memory: the team must publish it
    std::vector<int> thread_of(kMost, -1);
    team.for_each(kMost, [&](int chunk, int thread) {
      ++counts[chunk];
      sums[chunk] += input * (chunk + 1);
      thread_of[chunk] = thread;
    });
    for (int c = 0; c < kMost; ++c) {
      CHECK(counts[c] == phase, "chunk %d ran %lld times of %d", c, counts[c], phase);
      CHECK(thread_of[c] >= 0 && thread_of[c] < threads);
      ++used[thread_of[c]];
    }
    expected += phase;
    team.for_each(phase % 3, [&](int chunk, int) { ++sums[chunk]; });
  }
  for (int c = 2; c < kMost; ++c) CHECK(sums[c] == expected * (c + 1));
}

// A pause longer than the spin puts workers and caller to sleep: each must be woken.
void test_sleeping() {
  Team team(3, 0);
  std::vector<int> counts(8);
  for (int phase = 0; phase < 20; ++phase) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    team.for_each(8, [&](int chunk, int thread) {
      if (thread > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++counts[chunk];
    });
  }
  for (const int count : counts) CHECK(count == 20);
}

// What a chunk throws, on whichever thread, reaches the caller once all are done, and the team goes on.
void test_exceptions() {
  for (const int threads : {1, 3}) {
    Team team(threads);
    for (int phase = 0; phase < 50; ++phase) {
      std::atomic<int> done{0};
      bool thrown = false;
      try {
        team.for_each(8, [&](int chunk, int) {
          if (chunk % 4 == 2) throw std::bad_alloc();
          ++done;
        });
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      CHECK(thrown && done == (threads > 1 ? 6 : 2));
      team.for_each(8, [&](int, int) { ++done; });
      CHECK(done == (threads > 1 ? 14 : 10));
    }
  }
}

void test_many_chunks() {
  Team team(2);
  std::vector<uint8_t> done(200001);
  team.for_each(200001, [&](int chunk, int) { ++done[chunk]; });
  for (const uint8_t d : done) CHECK(d == 1);
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8}) {
    test_phases(threads, 50, 2000);
    test_phases(threads, 0, 500);
  }
  for (int i = 0; i < 50; ++i) Team team(4);  // ends without a single phase
  test_sleeping();
  test_many_chunks();
  test_exceptions();
  return 0;
}
