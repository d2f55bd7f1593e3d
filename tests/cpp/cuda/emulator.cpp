// The machine behind csrc/cuda/device_model.h: every CUDA thread is a fiber of this OS thread, and runs until it waits
// at a rendezvous. README.md in this folder says what is modelled and how it finds mistakes.
//
// This file is compiled without TSan: its own state is no memory of the GPU. What a rendezvous orders is told to TSan
// by hand, and nothing else orders fibers. It is long because all of it shares one scheduler's state.
#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "device_model.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if SSD_EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace ssd::cuda::model {
namespace {

constexpr size_t kStack = 256 * 1024, kGuard = 64;
constexpr unsigned char kGuardByte = 0xa5;
constexpr int kFiberSets = 4, kMasks = 4, kBarriers = 16, kCopies = 64;
constexpr long long kPatience = 1 << 16;  // passes over all threads in which only flags were awaited

#if defined(__x86_64__)
// Saves the callee's registers on the old stack and takes them from the new one: swapcontext makes two system calls.
extern "C" void ssd_emulator_switch(void** old_stack, void* new_stack);
asm(R"(
.text
.globl ssd_emulator_switch
.type ssd_emulator_switch, @function
ssd_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ssd_emulator_switch, .-ssd_emulator_switch
)");
#endif

// What some threads wait for together. Two tokens by parity: with one, a thread that leaves late would acquire what
// others have released in the next round, and races would hide.
struct Gate {
  Place place;
  int arrived;
  unsigned round;
  int votes[2];
  char token[2];
};

struct WarpGate {
  unsigned lanes;
  Gate gate;
  unsigned char slots[2][32][kSlot];
};

struct Warp {
  WarpGate gates[kMasks];
  int used;
  unsigned returned;
};

struct Block {
  dim3 index;
  unsigned char* shared;
  size_t bytes;
  Warp* warps;
  Gate barrier, named[kBarriers];
  int returned;
};

struct Fiber {
  unsigned char* stack;
  Block* block;
  dim3 thread;
  unsigned linear;
  const Gate* waits;
  unsigned round;
  Place place;
  bool done, paused;
  Copy copies[kCopies];
  int groups[kCopies], copy_count, group;
#if defined(__x86_64__)
  void* saved;
#else
  ucontext_t context;
#endif
  void *fake_stack, *tsan;
};

struct Launch {
  dim3 grid, block;
  void (*run)(void*);
  void* context;
  Gate whole;
  int threads, resident, live;
  char born, died;
#if defined(__x86_64__)
  void* saved;
#else
  ucontext_t main;
#endif
  void *fake_stack, *tsan;
  const void* bottom;
  size_t size;
};

Launch* L = nullptr;
Fiber* F = nullptr;
std::vector<Fiber*>& pool = *new std::vector<Fiber*>;  // outlives launches: stacks and TSan's records are dear
emulator::Schedule schedule = emulator::kSchedules[0];
uint32_t random_state = 1;
long long launch_count = 0;

uint32_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state;
}

void who(const Fiber& f) {
  std::fprintf(stderr, "block %u,%u,%u thread %u", f.block->index.x, f.block->index.y, f.block->index.z, f.linear);
}

[[noreturn]] void stop(const Fiber& f, Place place, const char* what) {
  std::fprintf(stderr, "emulator: ");
  who(f);
  std::fprintf(stderr, " at %s (%s:%d) %s\n", place.name, place.file, place.line, what);
  std::fflush(stderr);
  std::_Exit(86);  // not abort: a planted bug leaves no core file behind
}

void to_fiber(Fiber& f) {
  F = &f;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&L->fake_stack, f.stack, kStack);
#endif
#if SSD_EMULATOR_TSAN
  __tsan_switch_to_fiber(f.tsan, 1);  // 1: a switch orders nothing
#endif
#if defined(__x86_64__)
  ssd_emulator_switch(&L->saved, f.saved);
#else
  swapcontext(&L->main, &f.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(L->fake_stack, nullptr, nullptr);
#endif
}

void arrived_in_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(F->fake_stack, &L->bottom, &L->size);
#endif
}

void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &F->fake_stack, L->bottom, L->size);
#endif
  (void)last;
#if SSD_EMULATOR_TSAN
  __tsan_switch_to_fiber(L->tsan, 1);
#endif
#if defined(__x86_64__)
  ssd_emulator_switch(&F->saved, L->saved);
#else
  swapcontext(&F->context, &L->main);
#endif
  arrived_in_fiber();
}

void release(char* token) {
#if SSD_EMULATOR_TSAN
  __tsan_release(token);
#endif
  (void)token;
}
void acquire(char* token) {
#if SSD_EMULATOR_TSAN
  __tsan_acquire(token);
#endif
  (void)token;
}

// Waits until `count` threads have come. `orders`: arrival releases and departure acquires. `same_place`: all must be
// at one line of the source. Returns the parity of the round.
unsigned meet(Gate& gate, int count, Place place, bool orders, bool same_place) {
  const unsigned parity = gate.round & 1, round = gate.round;
  if (orders) release(&gate.token[parity]);
  if (gate.arrived && same_place && (gate.place.line != place.line || std::strcmp(gate.place.file, place.file))) {
    std::fprintf(stderr, "emulator: others wait at %s (%s:%d)\n", gate.place.name, gate.place.file, gate.place.line);
    stop(*F, place, "meets threads that are at another place");
  }
  gate.place = place;
  if (++gate.arrived == count) {
    gate.arrived = 0;
    ++gate.round;
    gate.votes[gate.round & 1] = 0;
  } else {
    F->waits = &gate;
    F->round = round;
    F->place = place;
    while (gate.round == round) to_scheduler(false);
    F->waits = nullptr;
  }
  if (orders) acquire(&gate.token[parity]);
  return parity;
}

Warp& warp() { return F->block->warps[F->linear / 32]; }

WarpGate& warp_gate(unsigned lanes, Place place) {
  Warp& w = warp();
  if (!(lanes >> linear_lane() & 1)) stop(*F, place, "is not in its own mask of lanes");
  if (lanes & w.returned) {
    std::fprintf(stderr, "emulator: lane %d has returned\n", __builtin_ctz(lanes & w.returned));
    stop(*F, place, "waits for a lane that has returned");
  }
  for (int i = 0; i < w.used; ++i)
    if (w.gates[i].lanes == lanes) return w.gates[i];
  if (w.used == kMasks) stop(*F, place, "opens one more group of lanes than the emulator keeps");
  w.gates[w.used].lanes = lanes;
  return w.gates[w.used++];
}

void entry() {
  arrived_in_fiber();
  acquire(&L->born);
  L->run(L->context);
  if (F->copy_count) stop(*F, {"return", "", 0}, "leaves copies under way");
  release(&L->died);
  warp().returned |= 1u << linear_lane();
  ++F->block->returned;
  --L->live;
  F->done = true;
  to_scheduler(true);
}

void start(Fiber& f) {
  f.waits = nullptr;
  f.done = f.paused = false;
  f.copy_count = f.group = 0;
  f.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStack);
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(f.stack + kStack - 64);
  top[0] = reinterpret_cast<void*>(&entry);
  top[1] = nullptr;  // entry has no caller; this keeps its stack aligned as after a call
  f.saved = top - 6;
  std::memset(f.saved, 0, 6 * sizeof(void*));
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
#endif
}

void report_deadlock(int first, int threads) {
  int shown = 0;
  for (int i = first; i < first + threads && shown < 4; ++i) {
    const Fiber& f = *pool[static_cast<size_t>(i)];
    if (f.done) continue;
    std::fprintf(stderr, "emulator: ");
    who(f);
    std::fprintf(stderr, " waits at %s (%s:%d) for threads that never come; %d of its block have returned\n",
                 f.place.name, f.place.file, f.place.line, f.block->returned);
    ++shown;
  }
  std::fflush(stderr);
  std::_Exit(86);
}

// Runs the fibers of the resident blocks until all have returned.
void run_fibers(int first, int threads) {
  std::vector<int> turns(static_cast<size_t>(threads));
  std::iota(turns.begin(), turns.end(), first);
  if (schedule.order == emulator::Order::kDescending) std::reverse(turns.begin(), turns.end());
  if (schedule.order == emulator::Order::kShuffled)
    for (size_t i = turns.size() - 1; i > 0; --i) std::swap(turns[i], turns[next_random() % (i + 1)]);
  long long waiting = 0;
  while (L->live > 0) {
    bool moved = false, only_pauses = true;
    for (int turn : turns) {
      Fiber& f = *pool[static_cast<size_t>(turn)];
      if (f.done || (f.waits && f.waits->round == f.round)) continue;
      f.paused = false;
      to_fiber(f);
      moved = true;
      only_pauses = only_pauses && f.paused;
    }
    if (!moved) report_deadlock(first, threads);
    waiting = only_pauses ? waiting + 1 : 0;
    if (waiting > kPatience) stop(*F, {"load_acquire", "", 0}, "waits for a flag that never comes");
  }
}

// Shared memory of exactly `bytes`, so that ASan sees its end; all NaN, and with a guard behind it in plain builds.
unsigned char* new_shared(size_t bytes) {
  void* memory = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const size_t all = bytes;
#else
  const size_t all = bytes + kGuard;
#endif
  if (posix_memalign(&memory, 128, all ? all : 1)) std::abort();
  std::memset(memory, 0xff, bytes);
  if (all > bytes) std::memset(static_cast<unsigned char*>(memory) + bytes, kGuardByte, kGuard);
  return static_cast<unsigned char*>(memory);
}

void check_guard(const Block& block) {
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kGuard; ++i) {
    if (block.shared[block.bytes + i] == kGuardByte) continue;
    std::fprintf(stderr, "emulator: block %u wrote behind its shared memory\n", block.index.x);
    std::_Exit(86);
  }
#endif
  (void)block;
}

void grow_pool(int threads) {
  while (static_cast<int>(pool.size()) < threads) {
    Fiber* f = static_cast<Fiber*>(std::calloc(1, sizeof(Fiber)));
    void* stack = nullptr;
    if (!f || posix_memalign(&stack, 64, kStack)) std::abort();
    f->stack = static_cast<unsigned char*>(stack);
#if SSD_EMULATOR_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    pool.push_back(f);
  }
}

Block new_block(const Launch& now, int number, size_t shared_bytes) {
  const unsigned i = static_cast<unsigned>(number);
  Block block = {};
  block.index = dim3(i % now.grid.x, i / now.grid.x % now.grid.y, i / now.grid.x / now.grid.y);
  block.shared = new_shared(shared_bytes);
  block.bytes = shared_bytes;
  block.warps = static_cast<Warp*>(std::calloc(static_cast<size_t>((now.threads + 31) / 32), sizeof(Warp)));
  return block;
}

// Runs `count` blocks together, as fibers of the pool from `first_fiber` on.
void run_blocks(Block* blocks, int count, int first_fiber) {
  Launch& now = *L;
  const int all = count * now.threads;
  grow_pool(first_fiber + all);
  for (int i = 0; i < all; ++i) {
    Fiber& f = *pool[static_cast<size_t>(first_fiber + i)];
    const unsigned t = static_cast<unsigned>(i % now.threads);
    f.block = &blocks[i / now.threads];
    f.linear = t;
    f.thread = dim3(t % now.block.x, t / now.block.x % now.block.y, t / now.block.x / now.block.y);
    start(f);
  }
  now.live = now.resident = all;
  run_fibers(first_fiber, all);
  for (int b = 0; b < count; ++b) check_guard(blocks[b]);
}

}  // namespace

const dim3& thread_index() { return F->thread; }
const dim3& block_index() { return F->block->index; }
const dim3& block_size() { return L->block; }
const dim3& grid_size() { return L->grid; }
unsigned linear_lane() { return F->linear % 32; }

int inside(int index, int size) {
  if (index < 0 || index >= size) {
    std::fprintf(stderr, "emulator: index %d of an array of %d\n", index, size);
    if (F) stop(*F, {"Array", "", 0}, "is outside an array");
    std::_Exit(86);
  }
  return index;
}

void* shared_block(size_t bytes) {
  if (bytes > F->block->bytes) stop(*F, {"shared_memory", "", 0}, "asks for more shared memory than was launched");
  return F->block->shared;
}

void fail(Place place, const char* what) { stop(*F, place, what); }

void meet_block(Place place) { meet(F->block->barrier, L->threads, place, true, true); }

int meet_block_count(bool flag, Place place) {
  Gate& gate = F->block->barrier;
  gate.votes[gate.round & 1] += flag;
  const unsigned parity = meet(gate, L->threads, place, true, true);
  return gate.votes[parity];
}

void meet_named(int id, int threads, Place place) {
  if (id < 1 || id >= kBarriers || threads <= 0 || threads % 32 || threads > L->threads)
    stop(*F, place, "names a barrier that does not exist, or part of a warp");
  meet(F->block->named[id], threads, place, true, false);
}

void meet_warp(unsigned lanes, Place place) {
  meet(warp_gate(lanes, place).gate, __builtin_popcount(lanes), place, true, true);
}

void meet_grid(Place place) { meet(L->whole, L->resident, place, true, true); }

const unsigned char* exchange(unsigned lanes, const void* value, size_t bytes, Place place) {
  WarpGate& w = warp_gate(lanes, place);
  const unsigned parity = w.gate.round & 1;
  unsigned char* slot = w.slots[parity][linear_lane()];
  switch (bytes) {  // constant sizes: a call of memcpy would be seen by TSan
    case 4:
      __builtin_memcpy(slot, value, 4);
      break;
    case 8:
      __builtin_memcpy(slot, value, 8);
      break;
    case 24:
      __builtin_memcpy(slot, value, 24);
      break;
    default:
      stop(*F, place, "exchanges a size that the emulator does not copy");
  }
  meet(w.gate, __builtin_popcount(lanes), place, false, true);
  return w.slots[parity][0];
}

void pause() {
  F->paused = true;
  to_scheduler(false);
}

void may_pause() {
  if (schedule.order == emulator::Order::kShuffled && next_random() % 4 == 0) {
    to_scheduler(false);
  }
}

void copy_begin(void* to, const void* from, bool valid, Place place) {
  if (F->copy_count == kCopies) stop(*F, place, "has too many copies under way");
  if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16))
    stop(*F, place, "copies to or from an address that is no multiple of 16");
  Copy& copy = F->copies[F->copy_count];
  copy.to = to;
  copy.from = from;
  copy.valid = valid;
  if (valid) __builtin_memcpy(copy.bytes, from, 16);
  F->groups[F->copy_count++] = F->group;
}

void copy_commit_group() { ++F->group; }

bool copy_next(int pending, Copy* copy) {
  if (!F->copy_count || F->groups[0] >= F->group - pending) return false;
  *copy = F->copies[0];
  --F->copy_count;
  for (int i = 0; i < F->copy_count; ++i) {
    F->copies[i] = F->copies[i + 1];
    F->groups[i] = F->groups[i + 1];
  }
  return true;
}

int mma_rotation() { return static_cast<int>(schedule.seed * 5 + 1) % 16; }

void launch(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, void (*run)(void*), void* context) {
  Launch* now = static_cast<Launch*>(std::calloc(1, sizeof(Launch)));
  now->grid = grid;
  now->block = block;
  now->run = run;
  now->context = context;
  now->threads = static_cast<int>(block.x * block.y * block.z);
  L = now;
  ++launch_count;
#if SSD_EMULATOR_TSAN
  now->tsan = __tsan_get_current_fiber();
#endif
  const int blocks = static_cast<int>(grid.x * grid.y * grid.z);
  if (now->threads < 1 || now->threads > 1024 || blocks < 1 || shared_bytes > 227 * 1024) {
    std::fprintf(stderr, "emulator: no device launches %d blocks of %d threads with %zu bytes of shared memory\n",
                 blocks, now->threads, shared_bytes);
    std::_Exit(86);
  }
  std::vector<int> numbers(static_cast<size_t>(blocks));
  std::iota(numbers.begin(), numbers.end(), 0);
  if (schedule.order == emulator::Order::kDescending) std::reverse(numbers.begin(), numbers.end());
  if (schedule.order == emulator::Order::kShuffled)
    for (size_t i = numbers.size() - 1; i > 0; --i) std::swap(numbers[i], numbers[next_random() % (i + 1)]);
  // Shared memory is made before and freed after all blocks, which therefore nothing orders.
  std::vector<Block> all(static_cast<size_t>(blocks));
  for (size_t b = 0; b < all.size(); ++b) all[b] = new_block(*now, numbers[b], shared_bytes);
  release(&now->born);
  const int together = cooperative ? blocks : 1;
  for (int first = 0; first < blocks; first += together) {
    // One block after another, but not on the same fibers: TSan would see their order.
    const int fibers = SSD_EMULATOR_TSAN && !cooperative ? first % kFiberSets * now->threads : 0;
    run_blocks(all.data() + first, together, fibers);
  }
  acquire(&now->died);
  for (Block& block : all) {
    std::free(block.shared);
    std::free(block.warps);
  }
  L = nullptr;
  F = nullptr;
  std::free(now);
}

}  // namespace ssd::cuda::model

namespace ssd::cuda::emulator {

void use(Schedule schedule) {
  model::schedule = schedule;
  model::random_state = schedule.seed * 2654435769u + 12345u;
}

long long launches() { return model::launch_count; }

}  // namespace ssd::cuda::emulator
