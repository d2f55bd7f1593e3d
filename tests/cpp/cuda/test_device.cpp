// The primitives of device.h in the emulator, in every schedule, against plain loops.
#include <cmath>
#include <vector>

#include "../check.h"
#include "device.h"
#include "emulator.h"

namespace {

using namespace ssd::cuda;

constexpr int kLanes = 32;

// out[i][lane] for the i-th exchange.
SSD_KERNEL void exchanges(const unsigned* in, unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned v = in[lane];
  out[0 * kLanes + lane] = shuffle(v, lane / 2);
  out[1 * kLanes + lane] = shuffle_xor(v, 5);
  out[2 * kLanes + lane] = shuffle_up(v, 3);
  out[3 * kLanes + lane] = ballot(v & 1);
  out[4 * kLanes + lane] = match_any(v % 4);
  out[5 * kLanes + lane] = reduce_add(v);
  out[6 * kLanes + lane] = reduce_max(v);
  out[7 * kLanes + lane] = reduce_min(v);
  // Two groups of lanes at once, each with its own mask.
  const unsigned group = lane < 12 ? 0xfffu : 0xfffff000u;
  if (lane < 12) {
    out[8 * kLanes + lane] = reduce_add(v, group);
  } else {
    out[8 * kLanes + lane] = reduce_add(v, group);
  }
  const uint64_t wide = shuffle_xor(static_cast<uint64_t>(v) << 32 | 7u, 1);
  out[9 * kLanes + lane] = static_cast<unsigned>(wide >> 32);
}

void test_exchanges() {
  std::vector<unsigned> in(kLanes), out(10 * kLanes);
  for (int i = 0; i < kLanes; ++i) in[i] = static_cast<unsigned>(i * 2654435769u) >> 20;
  launch(exchanges, dim3(1), dim3(kLanes), 0, nullptr, in.data(), out.data());
  unsigned odd = 0, sum = 0, low = ~0u, high = 0, first = 0;
  for (int i = 0; i < kLanes; ++i) {
    odd |= (in[i] & 1) << i;
    sum += in[i];
    low = in[i] < low ? in[i] : low;
    high = in[i] > high ? in[i] : high;
    first += i < 12 ? in[i] : 0;
  }
  for (int i = 0; i < kLanes; ++i) {
    unsigned same = 0;
    for (int j = 0; j < kLanes; ++j) same |= static_cast<unsigned>(in[j] % 4 == in[i] % 4) << j;
    const unsigned gold[] = {in[i / 2], in[i ^ 5], in[i < 3 ? i : i - 3],        odd,      same, sum,
                             high,      low,       i < 12 ? first : sum - first, in[i ^ 1]};
    for (int e = 0; e < 10; ++e) CHECK(out[e * kLanes + i] == gold[e], "exchange %d lane %d", e, i);
  }
}

// One warp: d (16 x 8) = a (16 x 16) b^T with b (8 x 16), from rows of packed pairs; or k = 8 with tf32.
template <int kKind>
SSD_KERNEL void product(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t left[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
  const uint32_t right[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
  float sums[4] = {0, 0, 0, 0};
  if (kKind == 0) mma_bf16_k16(sums, left, right);
  if (kKind == 1) mma_half_k16(sums, left, right);
  if (kKind == 2) mma_tf32_k8(sums, left, right);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + t * 2 + i % 2] = sums[i];
}

template <int kKind>
void test_product() {
  constexpr int kDepth = kKind == 2 ? 8 : 16;
  ssd::test::Random random(7);
  std::vector<float> a(16 * kDepth), b(8 * kDepth), d(16 * 8);
  std::vector<uint32_t> packed_a(16 * 8), packed_b(8 * 8);
  // Small multiples of 1/8: exact in every format, and so is every sum in any order.
  const auto fill = [&](std::vector<float>& values, std::vector<uint32_t>& packed) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(random.below(33) - 16) / 8;
      const uint32_t bits = float_bits(values[i]);
      if (kKind == 2) {
        packed[i] = bits | 0x1fffu;  // the core ignores what tf32 does not hold
      } else {
        const uint32_t half =
            values[i] == 0 ? 0 : (bits >> 16 & 0x8000u) | (((bits & 0x7fffffffu) >> 13) - (112u << 10));
        packed[i / 2] |= (kKind == 0 ? bits >> 16 : half) << 16 * (i % 2);
      }
    }
  };
  fill(a, packed_a);
  fill(b, packed_b);
  launch(product<kKind>, dim3(1), dim3(kLanes), 0, nullptr, packed_a.data(), packed_b.data(), d.data());
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float gold = 0;
      for (int k = 0; k < kDepth; ++k) gold += a[i * kDepth + k] * b[j * kDepth + k];
      CHECK(d[i * 8 + j] == gold, "kind %d at %d, %d: %g for %g", kKind, i, j, d[i * 8 + j], gold);
    }
}

constexpr int kStages = 3, kTile = 128;
struct Pipeline {
  alignas(16) Array<Array<float, kTile>, kStages> stage;
  Array<int, 2> count;
};

// sum over tiles, kStages - 1 of them under way; the last tile is shorter, its rest zeros. Two halves of the block
// count on their own, behind named barriers.
SSD_KERNEL void pipeline(const float* x, int size, float* sum, int* positive) {
  Pipeline& s = shared_memory<Pipeline>();
  const int t = static_cast<int>(threadIdx.x), tiles = (size + kTile - 1) / kTile;
  const auto fetch = [&](int tile) {
    const int at = tile * kTile + 4 * t;
    if (t < kTile / 4 && tile < tiles) copy_async16(&s.stage[tile % kStages][4 * t], x + at, at < size);
    copy_commit();
  };
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  float total = 0;
  int above = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<kStages - 2>();
    block_sync();
    fetch(tile + kStages - 1);
    for (int i = 0; i < kTile; ++i) total += s.stage[tile % kStages][i];
    above += block_count(s.stage[tile % kStages][t] > 0);
  }
  copy_wait<0>();
  const int half = t / 64;
  if (t % 64 == 0) s.count[half] = above;
  named_sync(1 + half, 64);
  if (t % 64 == 63) positive[half] = s.count[half];
  if (t == 0) *sum = total;
}

void test_pipeline() {
  for (int size : {4, 128, 132, 640, 700}) {
    std::vector<float> x(static_cast<size_t>(size));
    float gold = 0, sum = -1;
    int count = 0, positive[2] = {-1, -1};
    for (int i = 0; i < size; ++i) {
      x[i] = static_cast<float>(i % 7 - 3);
      gold += x[i];
      count += x[i] > 0;
    }
    launch(pipeline, dim3(1), dim3(kTile), sizeof(Pipeline), nullptr, x.data(), size, &sum, positive);
    CHECK(sum == gold && positive[0] == count && positive[1] == count, "size %d", size);
  }
}

// The last block to come adds up what all have written; blocks need not run at once.
struct LastShared {
  unsigned ticket;
};
SSD_KERNEL void last_block(const int* x, int* parts, unsigned* tickets, int* sum) {
  LastShared& s = shared_memory<LastShared>();
  const int b = static_cast<int>(blockIdx.x), n = static_cast<int>(gridDim.x);
  if (threadIdx.x == 3) parts[b] = x[b] * 2;
  block_sync();
  if (threadIdx.x == 0) s.ticket = add_acq_rel(tickets, 1u);
  block_sync();
  if (s.ticket != gridDim.x - 1) return;
  if (threadIdx.x == 5) {
    int total = 0;
    for (int i = 0; i < n; ++i) total += parts[i];
    *sum = total;
  }
}

void test_last_block() {
  std::vector<int> x = {3, 1, 4, 1, 5}, parts(5, -1);
  unsigned tickets = 0;
  int sum = -1;
  launch(last_block, dim3(5), dim3(kLanes), sizeof(LastShared), nullptr, x.data(), parts.data(), &tickets, &sum);
  CHECK(sum == 28);
}

SSD_KERNEL void atomics(int* sum, unsigned* high, unsigned* low, unsigned* bits, uint64_t* wide) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomic_add(sum, static_cast<int>(i));
  atomic_max(high, i);
  atomic_min(low, i + 7);
  atomic_or(bits, 1u << i % 32);
  atomic_max(wide, static_cast<uint64_t>(i) << 33);
}

void test_atomics() {
  int sum = 0;
  unsigned high = 0, low = ~0u, bits = 0;
  uint64_t wide = 0;
  launch(atomics, dim3(2), dim3(40), 0, nullptr, &sum, &high, &low, &bits, &wide);
  CHECK(sum == 79 * 80 / 2 && high == 79 && low == 7 && bits == ~0u && wide == 79ull << 33);
}

}  // namespace

int main() {
  for (emulator::Schedule schedule : emulator::kSchedules) {
    emulator::use(schedule);
    test_exchanges();
    test_product<0>();
    test_product<1>();
    test_product<2>();
    test_pipeline();
    test_last_block();
    test_atomics();
  }
  CHECK(emulator::launches() > 0);
}
