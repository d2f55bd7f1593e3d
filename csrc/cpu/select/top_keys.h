// Selection by keys: a score and its neuron packed into one integer, so that one comparison decides value and tie.
// A larger key is a larger score; NaN is the largest score, -0 equals +0, and among equal scores the lower neuron wins.
// Keys of different neurons differ, so the K largest are one definite set whatever the order in which they came.
#pragma once

#include "simd/simd.h"

namespace ssd::cpu::SSD_LEVEL {

SSD_INLINE uint64_t double_to_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  return bits;
}
SSD_INLINE double bits_to_double(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}

template <class T>
struct KeyOf;

template <>
struct KeyOf<float> {
  using type = uint64_t;
  static SSD_INLINE type make(float score, uint32_t neuron) {
    uint32_t bits = float_to_bits(score);
    if (score == 0) bits = 0;
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (score != score) bits = 0xffffffffu;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - neuron);
  }
  static SSD_INLINE float score(type key) {
    const uint32_t bits = static_cast<uint32_t>(key >> 32);
    return bits_to_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
  }
  static SSD_INLINE uint32_t neuron(type key) { return 0xffffffffu - static_cast<uint32_t>(key); }
};

template <>
struct KeyOf<double> {
  using type = unsigned __int128;
  static SSD_INLINE type make(double score, uint32_t neuron) {
    uint64_t bits = double_to_bits(score);
    if (score == 0) bits = 0;
    bits = bits >> 63 ? ~bits : bits | 0x8000000000000000u;
    if (score != score) bits = ~uint64_t{0};
    return static_cast<type>(bits) << 32 | (0xffffffffu - neuron);
  }
  static SSD_INLINE double score(type key) {
    const uint64_t bits = static_cast<uint64_t>(key >> 32);
    return bits_to_double(bits >> 63 ? bits & 0x7fffffffffffffffu : ~bits);
  }
  static SSD_INLINE uint32_t neuron(type key) { return 0xffffffffu - static_cast<uint32_t>(key); }
};

template <class T>
using Key = typename KeyOf<T>::type;

template <class K>
SSD_INLINE void swap_keys(K* a, K* b) {
  const K kept = *a;
  *a = *b;
  *b = kept;
}

// Sorts keys[0 .. count) in descending order: insertion for few, a heap for many.
template <class K>
void sort_keys(K* keys, int64_t count) {
  if (count <= 48) {
    for (int64_t i = 1; i < count; ++i) {
      const K key = keys[i];
      int64_t j = i;
      for (; j > 0 && keys[j - 1] < key; --j) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  const auto sift = [keys](int64_t at, int64_t size) {  // the smallest key on top
    const K key = keys[at];
    for (int64_t child = 2 * at + 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && keys[child + 1] < keys[child]) ++child;
      if (key <= keys[child]) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = key;
  };
  for (int64_t i = count / 2 - 1; i >= 0; --i) sift(i, count);
  for (int64_t size = count - 1; size > 0; --size) {
    swap_keys(&keys[0], &keys[size]);
    sift(0, size);
  }
}

// Moves the `keep` largest of keys[0 .. count), keep < count, to the front in any order. Quickselect; a pivot that
// splits badly too often hands over to the sort, so no input is quadratic.
template <class K>
void keep_largest(K* keys, int64_t count, int64_t keep) {
  int64_t low = 0, high = count;  // the border lies in [low, high]
  for (int rounds = 0; high - low > 24; ++rounds) {
    if (rounds == 64) {
      sort_keys(keys + low, high - low);
      return;
    }
    K *first = &keys[low], *middle = &keys[low + (high - low) / 2], *last = &keys[high - 1];
    if (*first < *middle) swap_keys(first, middle);
    if (*first < *last) swap_keys(first, last);
    if (*middle < *last) swap_keys(middle, last);
    const K pivot = *middle;
    int64_t i = low, j = high - 1;
    while (i <= j) {
      while (keys[i] > pivot) ++i;
      while (keys[j] < pivot) --j;
      if (i <= j) swap_keys(&keys[i++], &keys[j--]);
    }
    if (keep <= j + 1) {  // [low, j] >= pivot >= [i, high)
      high = j + 1;
    } else if (keep >= i) {
      low = i;
    } else {
      return;
    }
    if (keep == low || keep == high) return;
  }
  sort_keys(keys + low, high - low);
}

// Up to this many keys are kept sorted; more are collected in a buffer that is cut back now and then.
constexpr int64_t kSortedKeys = 64;

// The `need` best of a stream of scores.
template <class T>
struct TopKeys {
  Key<T>* keys;                   // room for capacity_for(need)
  int64_t count, need, capacity;  // count starts at 0

  static int64_t capacity_for(int64_t need) {
    return need <= kSortedKeys ? need : need + (need < (1 << 20) ? need : 1 << 20);
  }

  // True when the limit may have risen; only then, and later, has it a meaning.
  SSD_INLINE bool push(T score, uint32_t neuron) {
    const Key<T> key = KeyOf<T>::make(score, neuron);
    if (need > kSortedKeys) {
      keys[count++] = key;
      if (count < capacity) return false;
      cut();
      return true;
    }
    int64_t at = count;
    if (count < need) {
      ++count;
    } else {
      at = need - 1;
      if (key < keys[at]) return false;
    }
    for (; at > 0 && keys[at - 1] < key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
    return count == need;
  }
  // Leaves the `need` best, in any order.
  void cut() {
    if (count > need) {
      keep_largest(keys, count, need);
      count = need;
    }
  }
  // The smallest kept score: no later neuron enters with an equal or a smaller one.
  SSD_INLINE T limit() const {
    if (need <= kSortedKeys) return KeyOf<T>::score(keys[need - 1]);
    Key<T> least = keys[0];
    for (int64_t i = 1; i < need; ++i) least = keys[i] < least ? keys[i] : least;
    return KeyOf<T>::score(least);
  }
};

}  // namespace ssd::cpu::SSD_LEVEL
