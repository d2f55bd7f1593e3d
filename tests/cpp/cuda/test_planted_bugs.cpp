// Tests of the test: each planted mistake must be caught, and by a message that names it. Without arguments the
// program runs itself once per mistake; `test_planted_bugs NAME` makes that one mistake.
#include <cstring>
#include <string>
#include <vector>

#include "../check.h"
#include "emulator.h"
#include "planted_bugs.cuh"

namespace {

using namespace ssd::cuda;
using namespace ssd::cuda::planted;

// Kernels write NaN or a wrong number where a mistake shows by value alone.
void require(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::_Exit(3);
}

template <int kBug>
void run_rows() {
  constexpr int kRows = 5;
  std::vector<float> x(kRows * kWidth), sum(kRows);
  std::vector<int> above(kRows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 31 + i / kWidth);
  launch(row_sums<kBug>, dim3(1), dim3(kThreads), sizeof(RowShared), nullptr, x.data(), kRows, sum.data(),
         above.data());
  for (int r = 0; r < kRows; ++r) {
    const float* row = x.data() + r * kWidth;
    float gold = 0;
    int count = 0;
    for (int d = 0; d < kWidth; ++d) gold += row[d];
    for (int d = 0; d < kWidth; ++d) count += row[d] > gold / kWidth;
    require(sum[static_cast<size_t>(r)] == gold && above[static_cast<size_t>(r)] == count, "sums of rows");
  }
}

template <int kBug>
void run_ring() {
  constexpr int kBlocks = 4, kSteps = 6;
  std::vector<int> cells(2 * kBlocks, 0);
  launch_cooperative(ring<kBug>, dim3(kBlocks), dim3(32), 0, nullptr, cells.data(), kSteps);
  for (int b = 0; b < kBlocks; ++b) require(cells[static_cast<size_t>(b)] == kSteps, "cells of the ring");
}

template <int kBug>
void run_neighbours() {
  std::vector<int> in(32), out(32);
  for (int i = 0; i < 32; ++i) in[static_cast<size_t>(i)] = i * i;
  launch(neighbours<kBug>, dim3(1), dim3(32), sizeof(WarpShared), nullptr, in.data(), out.data());
  for (int i = 0; i < 32; ++i) require(out[static_cast<size_t>(i)] == in[static_cast<size_t>((i + 1) % 32)], "lanes");
}

template <int kBug>
void run_handover() {
  unsigned flag = 0;
  int number = 0, got = 0;
  launch_cooperative(handover<kBug>, dim3(2), dim3(1), 0, nullptr, &flag, &number, &got);
  require(got == 42, "number handed over");
}

#if defined(__SANITIZE_THREAD__)
constexpr int kBuild = 2;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kBuild = 1;
#else
constexpr int kBuild = 0;
#endif
const char* const kRace = "ThreadSanitizer: data race";

struct Planted {
  const char* name;
  void (*run)();
  const char* plain;  // what the message says in the plain build, and under ASan where it says no more
  const char* asan;
  const char* tsan;
};

const Planted kPlanted[] = {
    {"barrier missing before", run_rows<kBarrierMissingBefore>, "wrong result: sums of rows", nullptr, kRace},
    {"barrier missing after", run_rows<kBarrierMissingAfter>, "wrong result: sums of rows", nullptr, kRace},
    {"early read of a copy", run_rows<kEarlyReadOfCopy>, "wrong result: sums of rows", nullptr, kRace},
    {"shuffle by a returned lane", run_rows<kShuffleByReturnedLane>, "waits for a lane that has returned", nullptr,
     nullptr},
    {"index past an array", run_rows<kIndexPastArray>, "index 2 of an array of 2", nullptr, nullptr},
    {"write past shared memory", run_rows<kWritePastSharedMemory>, "wrote behind its shared memory",
     "AddressSanitizer: heap-buffer-overflow", nullptr},
    {"missing grid barrier", run_ring<kMissingGridBarrier>, "wrong result: cells of the ring", nullptr, kRace},
    {"barrier not reached", run_rows<kBarrierNotReached>, "waits at block_sync", nullptr, nullptr},
    {"different barriers", run_rows<kDifferentBarriers>, "meets threads that are at another place", nullptr, nullptr},
    // What the emulator's order hides without TSan.
    {"shuffle for a barrier", run_neighbours<kShuffleOrdersNothing>, "", "", kRace},
    {"flag without release", run_handover<kFlagWithoutRelease>, "", "", kRace},
};

// What must be said of it here; "" where this build cannot find it.
const char* expected(const Planted& bug) {
  if (kBuild == 2 && bug.tsan) return bug.tsan;
  if (kBuild == 1 && bug.asan) return bug.asan;
  return bug.plain;
}

void run_in_every_schedule(void (*run)()) {
  for (emulator::Schedule schedule : emulator::kSchedules) {
    emulator::use(schedule);
    run();
  }
}

std::string output_of(const std::string& command) {
  std::string text;
  std::FILE* pipe = popen(command.c_str(), "r");
  CHECK(pipe);
  char part[4096];
  while (const size_t size = std::fread(part, 1, sizeof(part), pipe)) text.append(part, size);
  const int status = pclose(pipe);
  return text + "\nstatus " + std::to_string(status);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    for (const Planted& bug : kPlanted)
      if (!std::strcmp(bug.name, argv[1])) run_in_every_schedule(bug.run);
    return 0;
  }
  run_in_every_schedule(run_rows<kNone>);
  run_in_every_schedule(run_ring<kNone>);
  run_in_every_schedule(run_neighbours<kNone>);
  run_in_every_schedule(run_handover<kNone>);
  for (const Planted& bug : kPlanted) {
    if (!*expected(bug)) continue;
    const std::string said = output_of(std::string("TSAN_OPTIONS=halt_on_error=1:atexit_sleep_ms=0 '") + argv[0] +
                                       "' '" + bug.name + "' 2>&1");
    CHECK(said.find(expected(bug)) != std::string::npos, "'%s' was not caught by '%s' but: %s", bug.name, expected(bug),
          said.c_str());
    CHECK(said.find("status 0") == std::string::npos, "'%s' ended well", bug.name);
  }
}
