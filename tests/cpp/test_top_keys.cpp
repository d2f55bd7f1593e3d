// select/top_keys.h: the order of keys, the sort, the selection, and the buffer that keeps the best of a stream.
#include "select/top_keys.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"

using namespace ssd::cpu::SSD_LEVEL;
using ssd::test::Random;

namespace {

template <class T>
void test_order() {
  const T inf = static_cast<T>(INFINITY), nan = static_cast<T>(NAN), tiny = std::numeric_limits<T>::denorm_min();
  const T descending[] = {nan, inf, std::numeric_limits<T>::max(), 2, 1, tiny, 0, -tiny, -1, -2, -inf};
  Key<T> last = 0;
  bool first = true;
  for (const T score : descending) {
    for (const uint32_t neuron : {0u, 1u, 77u, 0x7ffffffeu}) {  // among equal scores the lower neuron is larger
      const Key<T> key = KeyOf<T>::make(score, neuron);
      CHECK(first || key < last);
      CHECK(key != 0);
      CHECK(KeyOf<T>::neuron(key) == neuron);
      const T back = KeyOf<T>::score(key);
      CHECK(score != score ? back != back : back == score);
      last = key;
      first = false;
    }
  }
  CHECK(KeyOf<T>::make(static_cast<T>(-0.0), 3) == KeyOf<T>::make(0, 3));
  CHECK(KeyOf<T>::make(-nan, 3) == KeyOf<T>::make(nan, 3));
}

template <class T>
void test_selection() {
  Random random(5);
  for (int round = 0; round < 3000; ++round) {
    const int count = 1 + random.below(round % 10 ? 200 : 3000), keep = 1 + random.below(count);
    const int kinds = 1 + random.below(round % 3 ? 5 : 100000);
    std::vector<Key<T>> keys(count);
    for (int i = 0; i < count; ++i) {
      const int shape = round % 4;  // random, ascending, descending, organ pipe
      const int value = shape == 0 ? random.below(kinds) : shape == 1 ? i : shape == 2 ? -i : std::min(i, count - i);
      keys[i] = KeyOf<T>::make(static_cast<T>(value), static_cast<uint32_t>(i));
    }
    std::vector<Key<T>> expected = keys, kept = keys;
    std::sort(expected.begin(), expected.end(), [](Key<T> a, Key<T> b) { return a > b; });
    if (keep < count) keep_largest(kept.data(), count, keep);
    sort_keys(kept.data(), keep);
    CHECK(std::equal(kept.begin(), kept.begin() + keep, expected.begin()), "keep %d of %d", keep, count);

    const int64_t capacity = TopKeys<T>::capacity_for(keep);
    std::vector<Key<T>> buffer(capacity);
    TopKeys<T> top{buffer.data(), 0, keep, capacity};
    T limit = static_cast<T>(NAN);
    for (int i = 0; i < count; ++i) {
      const T score = KeyOf<T>::score(keys[i]);
      if (score <= limit) continue;
      if (top.push(score, static_cast<uint32_t>(i))) limit = top.limit();
    }
    top.cut();
    CHECK(top.count == keep);
    sort_keys(top.keys, keep);
    CHECK(std::equal(top.keys, top.keys + keep, expected.begin()), "stream: keep %d of %d", keep, count);
  }
}

}  // namespace

int main() {
  ssd::test::require_level(SSD_STRING(SSD_LEVEL));
  test_order<float>();
  test_order<double>();
  test_selection<float>();
  test_selection<double>();
  std::printf("top_keys.h at %s: passed\n", SSD_STRING(SSD_LEVEL));
}
