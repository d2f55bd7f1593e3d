// The K + 1 largest scores of each row, exactly, in one read of the scores.
//
// One block per row. A tile of kTile scores is compared with a running limit, one compare a score; survivors go to a
// list in shared memory, which is cut to K + 1 before the next tile could overflow it, and the cut raises the limit.
// Tiles are visited in a fixed scrambled order, so rows that ascend cost no more than others. The next tile is on its
// way to registers while this one is compared.
// Traffic: the scores once. Determinism: keys are unique, so the result does not depend on any order.
#pragma once

#include "select.cuh"
#include "ssd/threshold_select_cuda.h"

namespace ssd::cuda {

constexpr int kSelectThreads = 256, kSelectEach = 8, kSelectTile = kSelectThreads * kSelectEach;

// In front of the list of keys in shared memory.
template <class K>
struct alignas(16) SelectShared {
  CutState cut;
  // How many keys tile i adds stands in added[i % 3]: one barrier a tile keeps its reset, use and reading apart.
  Array<unsigned, 3> added;
  K threshold;
};

template <class T>
struct Epilogue {
  const T *x_scale, *weight_scale;
  bool relu;
};

template <class T, class S>
SSD_DEVICE T finish_score(T score, const Epilogue<T>& e, const S* bias, long long row, long long neuron) {
  if (e.x_scale) score = score * e.x_scale[row];
  if (e.weight_scale) score = score * e.weight_scale[neuron];
  if (bias) score = score + to_acc(bias[neuron]);
  return e.relu && score <= 0 ? T(0) : score;
}

template <class T, class S, class O>
struct SelectTask {
  long long neurons, row_stride, column_stride;
  int k, keep, capacity;  // keep = min(K + 1, R)
  bool wide;              // rows may be read 16 bytes at a time
  const S* scores;
  Epilogue<T> epilogue;
  const O* bias;
  bool inhibition;
  O* values;
  int32_t* indices;
  O* threshold;
};

// The column of the e-th score of this thread in a tile: 16 bytes of neighbours, then the next stripe.
template <class S>
SSD_DEVICE int select_column(int e) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(S)) < kSelectEach ? 16 / static_cast<int>(sizeof(S)) : kSelectEach;
  return e / kWide * kWide * kSelectThreads + static_cast<int>(threadIdx.x) * kWide + e % kWide;
}

template <class S>
struct alignas(16) Sixteen {
  S data[16 / sizeof(S)];
};

template <class S>
SSD_DEVICE void load_tile(const S* row, long long base, long long neurons, long long stride, bool wide,
                          S (&tile)[kSelectEach]) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(S));
  SSD_UNROLL
  for (int e = 0; e < kSelectEach; e += kWide) {
    const long long column = base + select_column<S>(e);
    if (wide && column + kWide <= neurons) {
      const Sixteen<S> part = *reinterpret_cast<const Sixteen<S>*>(row + column);
      SSD_UNROLL
      for (int i = 0; i < kWide; ++i) tile[e + i] = part.data[i];
    } else {
      SSD_UNROLL
      for (int i = 0; i < kWide; ++i)
        if (column + i < neurons) tile[e + i] = row[(column + i) * stride];
    }
  }
}

// Writes the winners of a list of `keep` keys, in order. Ordered by the group before; `shared_threshold` is scratch.
template <class Group, class T, class O>
SSD_DEVICE void write_winners(const Key<T>* keys, int keep, int k, bool inhibition, Key<T>* shared_threshold, O* values,
                              int32_t* indices, O* threshold) {
  if (k == keep) {  // K = R: no threshold
    if (Group::rank() == 0) *shared_threshold = KeyOf<T>::make(T(0), 0);
  } else {
    in_order<Group>(keys, keep, [&](int rank, Key<T> key) {
      if (rank == k) *shared_threshold = key;
    });
  }
  Group::sync();
  const T limit = KeyOf<T>::score(*shared_threshold);
  if (Group::rank() == 0) from_acc(limit, threshold);
  in_order<Group>(keys, keep, [&](int rank, Key<T> key) {
    if (rank >= k) return;
    T value = KeyOf<T>::score(key);
    if (inhibition) {
      value = value - limit;
      value = value <= 0 ? T(0) : value;
    }
    from_acc(value, values + rank);
    indices[rank] = static_cast<int32_t>(key_neuron(key));
  });
}

// Long because the phases of a block share its keys in shared memory and its barriers.
template <class T, class S, class O>
SSD_KERNEL void SSD_LAUNCH_BOUNDS(kSelectThreads, 2) threshold_select_kernel(SelectTask<T, S, O> p) {
  using Group = BlockGroup<kSelectThreads>;
  using K = Key<T>;
  SelectShared<K>& s = shared_memory<SelectShared<K>>();
  K* const keys = reinterpret_cast<K*>(&s + 1);
  const long long row = blockIdx.x;
  const S* const scores = p.scores + row * p.row_stride;
  const long long tiles = (p.neurons + kSelectTile - 1) / kSelectTile;
  // Near the golden section of their number, and coprime to it: it visits every tile.
  long long stride = tiles * 5 / 8 + 1;
  for (long long a = tiles, b = stride; a != 1;) {
    while (b) {
      const long long rest = a % b;
      a = b;
      b = rest;
    }
    if (a == 1) break;
    a = tiles;
    b = ++stride;
  }
  if (threadIdx.x < 3) s.added[static_cast<int>(threadIdx.x)] = 0;
  block_sync();
  K limit = 0;
  int count = 0, counter = 0;
  long long tile = 0;
  S next[kSelectEach] = {};
  load_tile(scores, 0, p.neurons, p.column_stride, p.wide, next);
  for (long long i = 0; i < tiles; ++i) {
    S now[kSelectEach];
    SSD_UNROLL
    for (int e = 0; e < kSelectEach; ++e) now[e] = next[e];
    const long long base = tile * kSelectTile;
    tile = (tile + stride) % tiles;
    if (i + 1 < tiles) load_tile(scores, tile * kSelectTile, p.neurons, p.column_stride, p.wide, next);
    K found[kSelectEach];
    unsigned wanted = 0;
    SSD_UNROLL
    for (int e = 0; e < kSelectEach; ++e) {
      const long long neuron = base + select_column<S>(e);
      found[e] = 0;
      if (neuron >= p.neurons) continue;
      found[e] = KeyOf<T>::make(finish_score(static_cast<T>(to_acc(now[e])), p.epilogue, p.bias, row, neuron),
                                static_cast<uint32_t>(neuron));
      wanted |= static_cast<unsigned>(found[e] >= limit) << e;
    }
    if (ballot(wanted)) {  // seldom, once the limit has risen
      SSD_UNROLL
      for (int e = 0; e < kSelectEach; ++e) {
        const unsigned place = append_place(&s.added[counter], wanted >> e & 1);
        if (wanted >> e & 1) keys[count + static_cast<int>(place)] = found[e];
      }
    }
    block_sync();
    count += static_cast<int>(s.added[counter]);
    if (threadIdx.x == 0) s.added[(counter + 2) % 3] = 0;
    counter = (counter + 1) % 3;
    if (count > p.keep && (count + kSelectTile > p.capacity || i + 1 == tiles)) {
      limit = cut_keys<Group, KeyOf<T>::kBits>(s.cut, keys, count, p.keep);
      count = p.keep;
    }
  }
  write_winners<Group, T>(keys, p.keep, p.k, p.inhibition, &s.threshold, p.values + row * p.k, p.indices + row * p.k,
                          p.threshold + row);
}

}  // namespace ssd::cuda
