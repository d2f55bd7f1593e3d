// Exact winners by scanning: canonical scores tile by tile, against each row's running threshold; the (B, R) scores
// are never stored. A scan that makes certificates keeps everything within `gap` below a neuron's own threshold.
#include <algorithm>
#include <atomic>
#include <functional>

#include "engine/state.h"

namespace ssd::cpu {

SdmlpTrainer::Impl::ScanPlan SdmlpTrainer::Impl::plan_scan(int n, const float* coefficients) const {
  ScanPlan plan;
  // bf16 where there are rows enough to share the rounding of W, and no coefficient lets everything through.
  plan.preselect =
      kernel.preselect && n >= kPreselectLeastRows && D >= kPreselectLeastInputs && R >= kPreselectLeastNeurons;
  float least = 1.f;
  for (int64_t j = 0; plan.preselect && j < R; ++j) least = coefficients[j] < least ? coefficients[j] : least;
  plan.preselect = plan.preselect && least >= 0;
  plan.rows = !plan.preselect ? kScanRows : n > kPreselectRows ? kPreselectRows / 2 : kPreselectRows;
  // Few rows share a pass over the weights by ranges of neurons; many rows by groups of rows.
  plan.groups = (n + plan.rows - 1) / plan.rows;
  const int64_t most = std::max<int64_t>(1, R / kPartNeurons);
  plan.parts = plan.groups >= kMostParts
                   ? 1
                   : static_cast<int>(std::min<int64_t>(most, plan.groups >= 2 ? kMostParts / 2 : kMostParts));
  return plan;
}

namespace {

// Keeps a neuron's score among the K + 1 best of its row.
void offer(ScanList& list, size_t winners, float score) {
  std::vector<float>& heap = list.heap;
  if (heap.size() < winners) {
    heap.push_back(score);
    std::push_heap(heap.begin(), heap.end(), std::greater<float>());
  } else if (score > heap.front()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<float>());
    heap.back() = score;
    std::push_heap(heap.begin(), heap.end(), std::greater<float>());
  }
  if (heap.size() == winners && heap.front() > list.floor) list.floor = heap.front();
}

// Sorts (index, h) by index: radix sort, 8 bits at a time.
void sort_by_index(Row& row, int count, int64_t neurons) {
  thread_local std::vector<int32_t> index;
  thread_local std::vector<float> h;
  index.resize(count);
  h.resize(count);
  int32_t *from = row.index.data(), *to = index.data();
  float *h_from = row.h.data(), *h_to = h.data();
  for (int shift = 0; (neurons - 1) >> shift > 0; shift += 8) {
    int begin[257] = {};
    for (int i = 0; i < count; ++i) ++begin[(from[i] >> shift & 255) + 1];
    for (int d = 0; d < 256; ++d) begin[d + 1] += begin[d];
    for (int i = 0; i < count; ++i) {
      const int at = begin[from[i] >> shift & 255]++;
      to[at] = from[i];
      h_to[at] = h_from[i];
    }
    std::swap(from, to);
    std::swap(h_from, h_to);
  }
  if (from != row.index.data()) {
    std::copy_n(from, count, row.index.data());
    std::copy_n(h_from, count, row.h.data());
  }
}

void make_room(ScanList& list, int entries) {
  if (static_cast<int>(list.index.size()) >= list.count + entries) return;
  list.index.resize(2 * (list.count + entries) + 256);
  list.score.resize(list.index.size());
}

}  // namespace

namespace {

// What a thread keeps from scan to scan. Inputs lie side by side: scattered rows would crowd each other out of the
// nearest cache.
struct ScanScratch {
  Floats inputs;                                 // (rows, D)
  std::vector<char, LineAllocator<char>> state;  // of the bf16 preselection
  std::vector<int32_t> row, index;               // what it finds of one block: kPreselectBlock * rows entries
  std::vector<float> score;
};
thread_local ScanScratch scan_scratch;

}  // namespace

// Readies one group of rows for one range of neurons: inputs, empty lists, and the inputs in bf16.
void SdmlpTrainer::Impl::load_group(ScanGroup& group, const int* which, int first, const ScanPlan& plan, int part) {
  ScanScratch& scratch = scan_scratch;
  scratch.inputs.resize(plan.rows * D);
  float* const inputs = scratch.inputs.data();
  group.shared = &scan_floors[first];
  for (int i = 0; i < group.count; ++i) {
    group.x[i] = inputs + i * D;
    std::copy_n(rows[which[first + i]].x, D, inputs + i * D);
    ScanList& list = lists[static_cast<size_t>(first + i) * plan.parts + part];
    list.count = 0;
    list.heap.clear();
    list.floor = -1;
    group.list[i] = &list;
  }
  if (!plan.preselect || group.count < kPreselectLeastRows) return;
  scratch.state.resize(kernel.preselect_bytes(group.count, D));
  kernel.preselect_load(scratch.state.data(), inputs, group.count, D);
  const size_t most = static_cast<size_t>(kPreselectBlock) * group.count;
  scratch.row.resize(most);
  scratch.index.resize(most);
  scratch.score.resize(most);
  group.preselects = true;
}

// What one range of neurons learns of a row's threshold, all may use. Whether every row has a bound of it.
bool SdmlpTrainer::Impl::ScanGroup::share_floors() {
  bool bounded = true;
  for (int i = 0; i < count; ++i) {
    const float others = shared[i].load(std::memory_order_relaxed);
    if (list[i]->floor > others) shared[i].store(list[i]->floor, std::memory_order_relaxed);
    floors[i] = list[i]->floor = std::max(list[i]->floor, others);
    bounded = bounded && floors[i] >= 0;
  }
  return bounded;
}

// One block of neurons in fp32: every score, against each row's own limit.
void SdmlpTrainer::Impl::scan_block(const ScanGroup& group, int64_t j, int size) {
  float scores[kPreselectRows * kScanBlock];
  const size_t winners = static_cast<size_t>(K) + 1;
  kernel.score_block(group.x, group.count, weight + j * D, size, D, scores, kScanBlock);
  for (int i = 0; i < group.count; ++i) {
    ScanList& kept = *group.list[i];
    make_room(kept, kScanBlock);
    const bool bounded = kept.floor >= 0;
    const int found = kernel.filter(scores + i * kScanBlock, group.coefficients + j, size, bounded ? kept.floor : 0.f,
                                    bounded ? group.gap : 1.f, static_cast<int32_t>(j), kept.index.data() + kept.count,
                                    kept.score.data() + kept.count);
    for (int e = kept.count; e < kept.count + found; ++e) offer(kept, winners, kept.score[e]);
    kept.count += found;
  }
}

// One block in bf16: what its bound cannot rule out is scored in fp32. `next`: neurons of the block after it. Returns
// how many scores were candidates.
int64_t SdmlpTrainer::Impl::preselect_block(const ScanGroup& group, int64_t j, int size, int64_t next) {
  ScanScratch& scratch = scan_scratch;
  const size_t winners = static_cast<size_t>(K) + 1;
  int64_t candidates = 0;
  const int found =
      kernel.preselect(scratch.state.data(), weight + j * D, size, next * D * static_cast<int64_t>(sizeof(float)),
                       group.coefficients + j, group.floors, group.gap, static_cast<int32_t>(j), scratch.row.data(),
                       scratch.index.data(), scratch.score.data(), &candidates);
  for (int e = 0; e < found; ++e) {
    ScanList& kept = *group.list[scratch.row[e]];
    make_room(kept, 1);
    kept.index[kept.count] = scratch.index[e];
    kept.score[kept.count++] = scratch.score[e];
    offer(kept, winners, scratch.score[e]);
  }
  return candidates;
}

void SdmlpTrainer::Impl::scan(const int* which, int n, const ScanPlan& plan, int group_index, int part, float gap,
                              const float* coefficients) {
  const int first = group_index * plan.rows;
  ScanGroup group;
  group.count = std::min(plan.rows, n - first);
  group.gap = gap;
  group.coefficients = coefficients;
  load_group(group, which, first, plan, part);

  const int64_t blocks = (R + kScanBlock - 1) / kScanBlock;
  const int64_t begin = blocks * part / plan.parts * kScanBlock;
  const int64_t end = std::min(R, blocks * (part + 1) / plan.parts * kScanBlock);
  // Without bounds the first neurons are scored in fp32: limits are low then, and everything would be a candidate.
  const int64_t warm = group.share_floors() ? begin : begin + kScanWarm;
  int64_t scanned = 0, candidates = 0;
  for (int64_t j = begin; j < end;) {
    const bool bounded = group.share_floors(), many = candidates * kCandidateShare > scanned * group.count;
    const bool preselects = group.preselects && bounded && j >= warm && !many;
    const int size = static_cast<int>(std::min<int64_t>(preselects ? kPreselectBlock : kScanBlock, end - j));
    if (preselects) {
      candidates += preselect_block(group, j, size, std::min<int64_t>(kPreselectBlock, end - j - size));
    } else {
      scan_block(group, j, size);
    }
    scanned += size;
    j += size;
  }
}

bool SdmlpTrainer::Impl::finish_scan(int which, int position, const ScanPlan& plan, float gap,
                                     const float* coefficients) {
  Row& row = rows[which];
  ScanList* parts = &lists[static_cast<size_t>(position) * plan.parts];
  ScanList& all = parts[0];
  for (int p = 1; p < plan.parts; ++p) {
    const ScanList& part = parts[p];
    if (static_cast<int>(all.index.size()) < all.count + part.count) {
      all.index.resize(all.count + part.count);
      all.score.resize(all.index.size());
    }
    std::copy_n(part.index.begin(), part.count, all.index.begin() + all.count);
    std::copy_n(part.score.begin(), part.count, all.score.begin() + all.count);
    all.count += part.count;
    all.heap.insert(all.heap.end(), part.heap.begin(), part.heap.end());
  }
  for (int e = 0; e < all.count; ++e)
    if (!(all.score[e] >= 0)) return false;  // inputs and weights are not negative: this is NaN
  float threshold = scan_floors[position];   // K + 1 neurons reach it, kept here or not
  if (static_cast<int64_t>(all.heap.size()) > K) {
    std::nth_element(all.heap.begin(), all.heap.begin() + K, all.heap.end(), std::greater<float>());
    threshold = std::max(threshold, all.heap[K]);
  }
  row.threshold = threshold;
  if (by_neurons()) keep_best(row, all.heap.data(), static_cast<int>(all.heap.size()), scan_floors[position]);
  remember(row, all.index.data(), all.score.data(), all.count);
  if (gap > 0) {
    // Ranges scanned apart have lower running thresholds: only what exceeds the row's own is kept.
    int kept = 0;
    for (int e = 0; e < all.count; ++e) {
      const float g = coefficients[all.index[e]];
      if (g < 0 || all.score[e] > g * threshold - gap) {
        all.index[kept] = all.index[e];
        all.score[kept++] = all.score[e];
      }
    }
    all.count = kept;
  }
  if (coefficients != gaba.data()) {
    row.count = 0;
    return true;
  }
  activate(row, all.index.data(), all.score.data(), all.count, threshold);
  return true;
}

void SdmlpTrainer::Impl::scan_begin(const int* which, int n, const ScanPlan& plan) {
  const size_t places = static_cast<size_t>(plan.groups) * plan.rows;
  if (lists.size() < places * plan.parts) lists.resize(places * plan.parts);
  if (scan_floors.size() < places) scan_floors = std::vector<std::atomic<float>>(places);
  const auto bound = [&](int c, int) {
    for (int i = c * kRowChunk; i < std::min(n, (c + 1) * kRowChunk); ++i)
      scan_floors[i].store(floor_of(rows[which[i]]), std::memory_order_relaxed);
  };
  if (team) {
    team->for_each((n + kRowChunk - 1) / kRowChunk, [&](int c, int thread) { bound(c, thread); });
  } else {
    for (int c = 0; c * kRowChunk < n; ++c) bound(c, 0);
  }
}

void SdmlpTrainer::Impl::scan_end(int n) {
  const size_t most = std::max<size_t>(kPopular, kPopularWinners * (K + 1));
  is_popular.resize(R);
  for (int i = 0; i < n; i += kPopularEvery) {
    if (rows[i].sample >= 0) continue;
    for (const int32_t j : rows[i].top) {
      if (is_popular[j]) continue;
      is_popular[j] = 1;
      if (popular.size() < most) {
        popular.push_back(j);
      } else {
        is_popular[popular[popular_next]] = 0;
        popular[popular_next] = j;
        popular_next = (popular_next + 1) % most;
      }
    }
  }
}

float SdmlpTrainer::Impl::floor_of(const Row& row) const {
  const int winners = static_cast<int>(K) + 1;
  const int32_t* known = row.sample >= 0 ? &likely[row.sample * winners] : nullptr;
  const bool seen = known && known[0] >= 0;
  if (!seen) known = popular.data();
  const int n = seen ? winners : static_cast<int>(popular.size());
  if (n < winners) return -1.f;
  thread_local std::vector<float> scores;
  scores.resize(n);
  kernel.score_rows(row.x, weight, known, n, D, scores.data());
  for (const float score : scores)
    if (!(score >= 0)) return -1.f;  // NaN: the scan will meet it
  std::nth_element(scores.begin(), scores.begin() + K, scores.end(), std::greater<float>());
  return scores[K];
}

// Writes the K + 1 neurons at or above the row's threshold to row.top, and to `likely`. A scan with a bound may have
// dropped some at it: then those that gave the bound take the places, for any neurons give one.
void SdmlpTrainer::Impl::remember(Row& row, const int32_t* index, const float* score, int n) {
  const int winners = static_cast<int>(K) + 1;
  std::vector<int32_t>& top = row.top;
  top.clear();
  for (int e = 0; e < n; ++e)
    if (score[e] > row.threshold) top.push_back(index[e]);
  for (int e = 0; e < n && static_cast<int>(top.size()) < winners; ++e)
    if (score[e] == row.threshold) top.push_back(index[e]);
  int32_t* places = row.sample >= 0 ? &likely[row.sample * winners] : nullptr;
  const bool seen = places && places[0] >= 0;
  const int32_t* others = seen ? places : popular.data();
  const int count = seen ? winners : static_cast<int>(popular.size());
  for (int i = 0; i < count && static_cast<int>(top.size()) < winners; ++i)
    if (std::find(top.begin(), top.end(), others[i]) == top.end()) top.push_back(others[i]);
  if (!places || row.duplicate) return;  // another thread may be at the same sample
  if (static_cast<int>(top.size()) == winners) std::copy_n(top.begin(), winners, places);
}

void SdmlpTrainer::Impl::activate(Row& row, const int32_t* index, const float* score, int n, float threshold) {
  row.reserve(n);
  row.threshold = threshold;
  if (by_neurons()) {
    std::copy_n(index, n, row.index.begin());
    std::copy_n(score, n, row.h.begin());
    row.count = n;
    return;
  }
  inhibit(row, index, score, n);
}

void SdmlpTrainer::Impl::inhibit(Row& row, const int32_t* index, const float* score, int n) {
  const float threshold = row.threshold;
  int count = 0;
  bool ascending = true;
  for (int e = 0; e < n; ++e) {
    const float a = score[e] > 0 ? score[e] : 0.f;
    const float inhibition = gaba[index[e]] * threshold;
    const float h = a - inhibition;
    if (h > 0) {
      ascending = ascending && (count == 0 || row.index[count - 1] < index[e]);
      row.index[count] = index[e];
      row.h[count++] = h;
    }
  }
  row.count = count;
  if (!ascending) {
    // Insertion sort: a certified row has few active neurons, most of them in order.
    if (count <= 64) {
      for (int i = 1; i < count; ++i) {
        const int32_t key = row.index[i];
        const float value = row.h[i];
        int j = i - 1;
        for (; j >= 0 && row.index[j] > key; --j) {
          row.index[j + 1] = row.index[j];
          row.h[j + 1] = row.h[j];
        }
        row.index[j + 1] = key;
        row.h[j + 1] = value;
      }
    } else {
      sort_by_index(row, count, R);
    }
  }
}

}  // namespace ssd::cpu
