// Certificates of one sample: the proof from its record, and the record from a scan. The rest is in
// certificates/certificates.cpp.
#include <algorithm>
#include <cmath>

#include "engine/certificates/certificates.h"

namespace ssd::cpu {

float Certificates::need(const Record& record, const Snapshot& snapshot, float threshold) const {
  // No neuron whose margin at r was below this is active now, nor above the threshold.
  const float change = threshold - record.threshold;
  const float shift = change >= 0 ? -snapshot.gaba_min * change : -change;
  return -(snapshot.delta + record.strayed + slack_ + shift);
}

bool Certificates::certify(int64_t sample, const float* x, const float* weight, ScratchRow& scratch, int* count,
                           float* threshold) {
  if (sample >= recorded_) return false;
  Record& record = records_[sample];
  const int slot = slot_of(record);
  if (slot < 0) return false;
  const Snapshot& snapshot = snapshots_[slot];
  const int winners = static_cast<int>(k_) + 1;
  const size_t room = winners + capacity_ + movers_max_ + 16;
  if (scratch.index.size() < room) {
    scratch.index.resize(room);
    scratch.score.resize(room);
    scratch.kept.resize(room);
    scratch.place.resize(room);
    scratch.order.resize(room);
  }
  int32_t* index = scratch.index.data();
  float* score = scratch.score.data();
  int32_t* hints = likely_ + sample * winners;

  // A lower bound of the threshold from K + 1 likely winners.
  std::copy(hints, hints + winners, index);
  kernel_->score_rows(x, weight, index, winners, inputs_, score);
  float floor = score[0];
  for (int i = 1; i < winners; ++i) floor = score[i] < floor ? score[i] : floor;
  if (!(floor >= 0)) return false;

  const int32_t* candidates = &candidates_[sample * capacity_];
  float* bounds = &bounds_[sample * capacity_];
  float* mover_bounds = &mover_bounds_[sample * movers_max_];
  int32_t* kept = scratch.kept.data();
  int found = winners;
  for (int i = 0; i < winners; ++i) scratch.place[i] = -1;
  const auto add = [&](int32_t neuron, int32_t place) {
    for (int i = 0; i < winners; ++i) {
      if (index[i] == neuron) {
        scratch.place[i] = place;
        return;
      }
    }
    scratch.place[found] = place;
    index[found++] = neuron;
  };
  // Scores the candidates of [begin, end) that no bound dismisses.
  const auto examine = [&](int begin, int end) {
    const int survivors =
        kernel_->prune(candidates + begin, bounds + begin, end - begin, path_gaba_.data(), floor, slack_, kept);
    for (int i = 0; i < survivors; ++i) add(candidates[begin + kept[i]], begin + kept[i]);
  };
  // The (K + 1)-th largest of all that was scored.
  const auto threshold_of = [&] {
    float* order = scratch.order.data();
    std::copy(score, score + found, order);
    std::nth_element(order, order + k_, order + found, [](float a, float b) { return a > b; });
    return order[k_];
  };

  // The movers and the best candidates come first: where a likely winner has fallen back, they raise the bound.
  int examined = std::min(record.count, 2 * kBlock);
  examine(0, examined);
  const int survivors =
      kernel_->prune_movers(mover_bounds, mover_path_.data(), mover_gaba_.data(), snapshot.movers, floor, slack_, kept);
  for (int i = 0; i < survivors; ++i)
    if (covers(snapshot, kept[i])) add(movers_[kept[i]], capacity_ + kept[i]);
  for (const int32_t place : replaced_) {
    if (place >= snapshot.movers || covers(snapshot, place)) continue;
    const int32_t neuron = mover_before_[place];
    const float* at = &path_gaba_[2 * static_cast<int64_t>(neuron)];
    if (!(mover_bounds[place] + at[0] + slack_ <= at[1] * floor) || at[1] < 0) add(neuron, capacity_ + place);
  }
  int scored = found;
  kernel_->score_rows(x, weight, index + winners, found - winners, inputs_, score + winners);
  for (int i = winners; i < found; ++i)
    if (!(score[i] >= 0)) return false;
  floor = threshold_of();
  const float least = need(record, snapshot, floor);
  if (!(record.outside < least)) return false;

  // Then every block that the one inequality does not dismiss whole.
  const float* margins = &margins_[sample * (capacity_ / kBlock)];
  const int begin = examined;
  while (examined < record.count && !(margins[examined / kBlock] < least)) examined += kBlock;
  examined = std::min(examined, static_cast<int>(record.count));
  if (examined > begin) {
    examine(begin, examined);
    kernel_->score_rows(x, weight, index + scored, found - scored, inputs_, score + scored);
    for (int i = scored; i < found; ++i)
      if (!(score[i] >= 0)) return false;
  }
  scratch.scored += found;
  scratch.examined += examined + snapshot.movers;
  const float exact = threshold_of();
  if (snapshot.gaba_min < 0 && !(record.outside < need(record, snapshot, exact))) return false;

  // What was scored gets its bound renewed, and the winners become the next visit's likely ones.
  int hinted = 0;
  for (int i = 0; i < found; ++i) {
    const int32_t place = scratch.place[i];
    const float bound = static_cast<float>(score[i] - nearest(index[i]));
    if (place >= capacity_) {
      mover_bounds[place - capacity_] = bound;
    } else if (place >= 0) {
      bounds[place] = bound;
    }
    if (score[i] > exact) hints[hinted++] = index[i];
  }
  for (int i = 0; i < found && hinted < winners; ++i)
    if (score[i] == exact) hints[hinted++] = index[i];
  record.last = exact;
  *count = found;
  *threshold = exact;
  return true;
}

void Certificates::prefetch(int64_t sample, const float* weight) const {
  if (sample >= recorded_) return;
  const Record& record = records_[sample];
  if (slot_of(record) < 0) return;
  const auto fetch = [](const void* begin, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(begin) + at);
  };
  const int winners = static_cast<int>(k_) + 1;
  const int32_t* hints = likely_ + sample * winners;
  const int64_t row = std::min<int64_t>(4 * inputs_, 1024);
  for (int i = 0; i < std::min(winners, 16); ++i) fetch(weight + hints[i] * inputs_, row);
  fetch(&margins_[sample * (capacity_ / kBlock)], 64);
  fetch(&candidates_[sample * capacity_], 4 * kBlock);
  fetch(&bounds_[sample * capacity_], 4 * kBlock);
  fetch(&mover_bounds_[sample * movers_max_], 4 * static_cast<int64_t>(movers_.size()));
}

void Certificates::record(int64_t sample, const int32_t* index, const float* score, int count, float threshold,
                          ScratchRow& scratch) {
  if (sample >= recorded_ || !active_ || newest_ < 0) return;
  Record& record = records_[sample];
  const int before = slot_of(record);
  if (before < 0 && record.retry > epoch_) return;
  if (before >= 0) --held_[before];
  const Snapshot& snapshot = snapshots_[newest_];
  record.snapshot = -1;
  if (before >= 0) record.wait = 0;
  record.wait = std::min(kRetry, 2 * record.wait + 1);  // unless this one comes about
  record.retry = static_cast<int32_t>(epoch_) + record.wait;
  float* mover_bounds = &mover_bounds_[sample * movers_max_];
  // A mover that did not survive the scan scored at most g I - gap; its first visit replaces this by its score.
  for (int z = 0; z < snapshot.movers; ++z)
    mover_bounds[z] = round_up(static_cast<double>(mover_gaba_[z]) * threshold - gap_ - nearest(movers_[z]));

  // Candidates in buckets of falling margin: enough order for blocks, without a sort.
  constexpr int kBuckets = 128;
  int size[kBuckets + 1] = {};
  if (static_cast<int>(scratch.order.size()) < count) {
    scratch.order.resize(count);
    scratch.kept.resize(count + 16);
  }
  float* margin = scratch.order.data();
  int32_t* bucket = scratch.kept.data();
  float highest = -gap_;
  int positive = 0;
  for (int i = 0; i < count; ++i) {
    margin[i] = score[i] - path_gaba_[2 * static_cast<int64_t>(index[i]) + 1] * threshold;
    highest = margin[i] > highest ? margin[i] : highest;
    positive += margin[i] >= 0;
  }
  if (positive > capacity_ / 2) return;
  const int room = std::max(usual_, std::min(capacity_, 2 * positive / kBlock * kBlock));
  const float scale = (kBuckets - 1) / (highest + gap_ + 1e-12f);
  for (int i = 0; i < count; ++i) {
    const int place = mover_place_[index[i]];
    if (covers(snapshot, place)) {
      mover_bounds[place] = static_cast<float>(score[i] - nearest(index[i]));
      bucket[i] = -1;
    } else if (!(margin[i] > -gap_)) {
      bucket[i] = -1;
    } else {
      bucket[i] = static_cast<int>((highest - margin[i]) * scale);
      ++size[bucket[i] + 1];
    }
  }
  for (int b = 0; b < kBuckets; ++b) size[b + 1] += size[b];
  int32_t* candidates = &candidates_[sample * capacity_];
  float* bounds = &bounds_[sample * capacity_];
  float* margins = &margins_[sample * (capacity_ / kBlock)];
  const int kept = std::min(size[kBuckets], room);
  for (int b = 0; b * kBlock < kept; ++b) margins[b] = -gap_;
  float outside = -gap_;
  for (int i = 0; i < count; ++i) {
    if (bucket[i] < 0) continue;
    const int at = size[bucket[i]]++;
    if (at >= room) {
      outside = std::max(outside, margin[i]);
      continue;
    }
    candidates[at] = index[i];
    bounds[at] = static_cast<float>(score[i] - nearest(index[i]));
    margins[at / kBlock] = std::max(margins[at / kBlock], margin[i]);
  }
  for (int b = (kept + kBlock - 1) / kBlock - 2; b >= 0; --b) margins[b] = std::max(margins[b], margins[b + 1]);

  if (!(outside < 0)) return;
  if (room == usual_) {
    ++made_;
    if (size[kBuckets - 1] > room) {
      ++overflowed_;
      reach_ += static_cast<int64_t>(-outside * (1 << 30));
    }
  }
  record.threshold = record.last = threshold;
  record.outside = outside;
  record.strayed = snapshot.delta;
  record.count = kept;
  record.snapshot = snapshot.id;
  record.wait = 0;
  ++held_[newest_];
}

}  // namespace ssd::cpu
