// The record of one sample, from a scan: its candidates in blocks of falling margin, bounds of the movers, and the
// largest margin of all others.
#include <algorithm>
#include <cassert>

#include "engine/certificates/certificates.h"

namespace ssd::cpu {

// The movers' bounds, the margins of the scan's survivors, and how many are active; they stand in scratch.order.
Certificates::Survivors Certificates::measure(int64_t sample, const ScanResult& scan, ScratchRow& scratch) {
  const Snapshot& snapshot = snapshots_[newest_];
  float* mover_bounds = &mover_bounds_[sample * movers_max_];
  // A mover that did not survive the scan scored at most g I - gap; its first visit replaces this by its score.
  for (int z = 0; z < snapshot.movers; ++z)
    mover_bounds[z] = round_up(static_cast<double>(mover_gaba_[z]) * scan.threshold - gap_ - nearest(movers_[z]));
  if (static_cast<int>(scratch.order.size()) < scan.count) {
    scratch.order.resize(scan.count);
    scratch.kept.resize(scan.count + 16);
  }
  Survivors survivors{-gap_, 0};
  for (int i = 0; i < scan.count; ++i) {
    const float inhibition = path_gaba_[2 * static_cast<int64_t>(scan.index[i]) + 1] * scan.threshold;
    const float margin = scratch.order[i] = scan.score[i] - inhibition;
    survivors.highest = margin > survivors.highest ? margin : survivors.highest;
    survivors.active += margin >= 0;
  }
  return survivors;
}

// Sorts the survivors that are no movers into buckets of falling margin: enough order for blocks, without a sort. The
// first `room` of them become the candidates; returns how many there are, and the largest margin of the others.
int Certificates::sort_candidates(int64_t sample, const ScanResult& scan, const Survivors& survivors, int room,
                                  ScratchRow& scratch, float* outside) {
  constexpr int kBuckets = 128;
  int size[kBuckets + 1] = {};
  const float* margin = scratch.order.data();
  int32_t* bucket = scratch.kept.data();
  float* mover_bounds = &mover_bounds_[sample * movers_max_];
  const float scale = (kBuckets - 1) / (survivors.highest + gap_ + 1e-12f);
  for (int i = 0; i < scan.count; ++i) {
    const int place = mover_place_[scan.index[i]];
    bucket[i] = -1;
    if (covers(snapshots_[newest_], place)) {
      mover_bounds[place] = static_cast<float>(scan.score[i] - nearest(scan.index[i]));
    } else if (margin[i] > -gap_) {
      bucket[i] = static_cast<int>((survivors.highest - margin[i]) * scale);
      ++size[bucket[i] + 1];
    }
  }
  for (int b = 0; b < kBuckets; ++b) size[b + 1] += size[b];
  const int sorted = size[kBuckets], kept = std::min(sorted, room);
  int32_t* candidates = &candidates_[sample * capacity_];
  float* bounds = &bounds_[sample * capacity_];
  float* margins = &margins_[sample * (capacity_ / kBlock)];
  for (int b = 0; b * kBlock < kept; ++b) margins[b] = -gap_;
  *outside = -gap_;
  for (int i = 0; i < scan.count; ++i) {
    if (bucket[i] < 0) continue;
    const int at = size[bucket[i]]++;
    if (at >= room) {
      *outside = std::max(*outside, margin[i]);
      continue;
    }
    candidates[at] = scan.index[i];
    bounds[at] = static_cast<float>(scan.score[i] - nearest(scan.index[i]));
    margins[at / kBlock] = std::max(margins[at / kBlock], margin[i]);
  }
  for (int b = (kept + kBlock - 1) / kBlock - 2; b >= 0; --b) margins[b] = std::max(margins[b], margins[b + 1]);
  return sorted;
}

void Certificates::record(int64_t sample, const ScanResult& scan, ScratchRow& scratch) {
  if (sample >= recorded_ || !active_ || newest_ < 0) return;
  Record& record = records_[sample];
  const int before = slot_of(record);
  if (before < 0 && record.retry > epoch_) return;
  if (before >= 0) --held_[before];
  record.snapshot = -1;
  if (before >= 0) record.wait = 0;
  record.wait = std::min(kRetry, 2 * record.wait + 1);  // unless this one comes about
  record.retry = static_cast<int32_t>(epoch_) + record.wait;

  const Survivors survivors = measure(sample, scan, scratch);
  if (survivors.active > capacity_ / 2) return;
  const int room = std::max(usual_, std::min(capacity_, 2 * survivors.active / kBlock * kBlock));
  float outside;
  const int sorted = sort_candidates(sample, scan, survivors, room, scratch, &outside);
  if (!(outside < 0)) return;
  if (room == usual_) {
    ++made_;
    if (sorted > room) {
      ++overflowed_;
      reach_ += static_cast<int64_t>(-outside * (1 << 30));
    }
  }
  record.threshold = record.last = scan.threshold;
  record.outside = outside;
  record.strayed = snapshots_[newest_].delta;
  record.known = static_cast<int32_t>(far_[newest_].neuron.size());
  record.count = std::min(sorted, room);
  record.extras = 0;
  record.snapshot = snapshots_[newest_].id;
  record.wait = 0;
  ++held_[newest_];
}

}  // namespace ssd::cpu
