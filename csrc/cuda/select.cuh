// Exact selection by keys, for a warp or a block: a score and its neuron packed into one integer, as csrc/cpu does it.
// A larger key is a larger score; NaN is the largest score, -0 equals +0, and among equal scores the lower neuron wins.
// Keys of different neurons differ, so the K largest are one definite set, whatever the order in which they came.
//
// A list in shared memory takes every key that reaches the limit, and is cut to the `keep` largest before it could
// overflow; nothing is ever dropped. A cut finds the keep-th largest by 8-bit digits from the top, and stops at the
// first digit whose bucket is wanted whole.
#pragma once

#include "numbers.cuh"

namespace ssd::cuda {

template <class T>
struct KeyOf;

template <>
struct KeyOf<float> {
  using type = uint64_t;
  static constexpr int kBits = 64;
  static SSD_DEVICE type make(float score, uint32_t neuron) {
    uint32_t bits = float_bits(score);
    if (score == 0) bits = 0;
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (score != score) bits = 0xffffffffu;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - neuron);
  }
  static SSD_DEVICE float score(type key) {
    const uint32_t bits = static_cast<uint32_t>(key >> 32);
    return bits_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
  }
};

template <>
struct KeyOf<double> {
  using type = uint128_t;
  static constexpr int kBits = 96;
  static SSD_DEVICE type make(double score, uint32_t neuron) {
    uint64_t bits = double_bits(score);
    if (score == 0) bits = 0;
    bits = bits >> 63 ? ~bits : bits | 0x8000000000000000u;
    if (score != score) bits = ~uint64_t{0};
    return static_cast<type>(bits) << 32 | (0xffffffffu - neuron);
  }
  static SSD_DEVICE double score(type key) {
    const uint64_t bits = static_cast<uint64_t>(key >> 32);
    return bits_double(bits >> 63 ? bits & 0x7fffffffffffffffu : ~bits);
  }
};

template <class T>
using Key = typename KeyOf<T>::type;

template <class K>
SSD_DEVICE uint32_t key_neuron(K key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

// Who works on one list together.
struct WarpGroup {
  static constexpr int kSize = 32;
  static SSD_DEVICE int rank() { return static_cast<int>(threadIdx.x) % 32; }
  static SSD_DEVICE void sync() { warp_sync(); }
};
template <int kThreads>
struct BlockGroup {
  static constexpr int kSize = kThreads;
  static SSD_DEVICE int rank() { return static_cast<int>(threadIdx.x); }
  static SSD_DEVICE void sync() { block_sync(); }
};

// What a cut needs in shared memory, one per group.
struct CutState {
  Array<unsigned, 256> bins;
  unsigned digit, rest, inside, kept, smallest;
};

// The place of `wanted` among the keys that come after `*count`, for every lane that wants one. All lanes take part.
SSD_DEVICE unsigned append_place(unsigned* count, bool wanted) {
  const unsigned who = ballot(wanted), lane = threadIdx.x % 32;
  if (!who) return 0;
  unsigned base = 0;
  if (lane == 0) base = atomic_add(count, static_cast<unsigned>(count_ones(who)));
  base = shuffle(base, 0);
  return base + static_cast<unsigned>(count_ones(who & ((1u << lane) - 1u)));
}

// The bin that holds the rest-th key from the top: one warp, lane l owns the bins 255 - 8 l and the seven below.
SSD_DEVICE void find_digit(CutState& s, unsigned rest) {
  const int lane = static_cast<int>(threadIdx.x) % 32, top = 255 - 8 * lane;
  unsigned own = 0;
  for (int j = 0; j < 8; ++j) own += s.bins[top - j];
  unsigned upto = own;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = shuffle_up(upto, step);
    if (lane >= step) upto += other;
  }
  unsigned before = upto - own;
  if (before >= rest || rest > upto) return;
  for (int j = 0; j < 8; ++j) {
    const unsigned inside = s.bins[top - j];
    if (rest <= before + inside) {
      s.digit = static_cast<unsigned>(top - j);
      s.rest = rest - before;
      s.inside = inside;
      return;
    }
    before += inside;
  }
}

// A lower bound that exactly the `keep` largest of keys[0 .. count) reach, keep <= count, as coarse as its first digits
// allow. The list, or what has such an operator[], must be ordered before for the group.
template <class Group, int kBits, class K, class Keys>
SSD_DEVICE K find_bound(CutState& s, const Keys& keys, int count, int keep) {
  const int rank = Group::rank();
  K mask = 0, bound = 0;
  unsigned rest = static_cast<unsigned>(keep);
  for (int shift = kBits - 8; shift >= 0; shift -= 8) {
    for (int i = rank; i < 256; i += Group::kSize) s.bins[i] = 0;
    Group::sync();
    for (int i = rank; i < count; i += Group::kSize)
      if ((keys[i] & mask) == bound) atomic_add(&s.bins[static_cast<int>(keys[i] >> shift) & 255], 1u);
    Group::sync();
    if (rank < 32) find_digit(s, rest);
    Group::sync();
    mask |= static_cast<K>(255) << shift;
    bound |= static_cast<K>(s.digit) << shift;
    rest = s.rest;
    if (s.inside == rest) break;
  }
  return bound;
}

// Moves the keys that reach `bound` to the front, unordered, and returns how many they are. `*smallest` becomes the
// least of their top 32 bits. The list must be ordered before, and is afterwards, for the group.
template <class Group, int kBits, class K>
SSD_DEVICE int compact(CutState& s, K* keys, int count, K bound, uint32_t* smallest) {
  const int rank = Group::rank();
  if (rank == 0) {
    s.kept = 0;
    s.smallest = 0xffffffffu;
  }
  unsigned least = 0xffffffffu;
  for (int begin = 0; begin < count; begin += Group::kSize) {
    const int i = begin + rank;
    const K key = i < count ? keys[i] : 0;
    Group::sync();  // a chunk is read before any of it is overwritten: places never lie beyond it
    const bool wanted = i < count && key >= bound;
    const unsigned place = append_place(&s.kept, wanted);
    if (!wanted) continue;
    keys[place] = key;
    const uint32_t top = static_cast<uint32_t>(key >> (kBits - 32));
    least = top < least ? top : least;
  }
  least = reduce_min(least);
  if (rank % 32 == 0) atomic_min(&s.smallest, least);
  Group::sync();
  const int kept = static_cast<int>(s.kept);
  *smallest = s.smallest;
  Group::sync();  // both have been read
  return kept;
}

// Keeps the `keep` largest of keys[0 .. count) in front, keep <= count. Returns a lower bound of them.
template <class Group, int kBits, class K>
SSD_DEVICE K cut_keys(CutState& s, K* keys, int count, int keep) {
  uint32_t smallest;
  const K bound = find_bound<Group, kBits, K>(s, keys, count, keep);
  compact<Group, kBits>(s, keys, count, bound, &smallest);
  return static_cast<K>(smallest) << (kBits - 32);
}

// Calls give(rank, key) for each of keys[0 .. count), rank 0 the largest. Each key is compared with all others.
template <class Group, class K, class Give>
SSD_DEVICE void in_order(const K* keys, int count, Give give) {
  for (int i = Group::rank(); i < count; i += Group::kSize) {
    const K key = keys[i];
    int above = 0;
    for (int j = 0; j < count; ++j) above += keys[j] > key;
    give(above, key);
  }
}

}  // namespace ssd::cuda
