// How far rows have moved: distances in the era, drifts from the snapshots, and who is looked at apart for it: movers,
// one set for all samples, and the far list of each snapshot.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "engine/certificates/certificates.h"
#include "engine/pages.h"

namespace ssd::cpu {

// The neurons that got farthest in this era go to Z: to free places or, where a snapshot is taken next, to those of
// movers that hardly move any more.
void Certificates::choose_movers(bool replace) {
  const size_t most = movers_max_;
  if (most == 0) return;
  std::vector<std::pair<float, int32_t>> moved, slow;
  const float least = kMoves * gap_;
  for_each_moved([&](int64_t j) {
    if (mover_place_[j] < 0 && farthest_[j] > least) moved.emplace_back(-farthest_[j], static_cast<int32_t>(j));
  });
  const size_t take = std::min(most, moved.size());
  std::partial_sort(moved.begin(), moved.begin() + take, moved.end());
  size_t next = 0;
  for (; next < take && movers_.size() < most; ++next) {
    const int32_t j = moved[next].second;
    mover_place_[j] = static_cast<int32_t>(movers_.size());
    movers_.push_back(j);
    mover_path_.push_back(path_gaba_[2 * j]);
    mover_gaba_.push_back(path_gaba_[2 * j + 1]);
    mover_before_.push_back(-1);
    mover_since_.push_back(0);
  }
  if (next == take || !replace) return;
  for (size_t z = 0; z < most; ++z) slow.emplace_back(farthest_[movers_[z]], static_cast<int32_t>(z));
  std::sort(slow.begin(), slow.end());
  for (size_t i = 0; next < take && i < most && -moved[next].first > kFaster * slow[i].first; ++i)
    next += replace_mover(slow[i].second, moved[next].second);
}

// Records of the snapshots so far go on holding the bound of the mover that leaves. One such is known for every place,
// so the place stays as it is while live records know an earlier one.
bool Certificates::replace_mover(int32_t place, int32_t neuron) {
  for (int s = 0; s < kSnapshots; ++s)
    if (snapshots_[s].id >= 0 && held_[s] > 0 && snapshots_[s].id < mover_since_[place]) return false;
  if (mover_since_[place] == 0) replaced_.push_back(place);
  mover_before_[place] = movers_[place];
  mover_place_[movers_[place]] = -1;
  mover_place_[neuron] = place;
  movers_[place] = neuron;
  mover_path_[place] = path_gaba_[2 * neuron];
  mover_gaba_[place] = path_gaba_[2 * neuron + 1];
  mover_since_[place] = (generation_ + 1) * kSnapshots;
  return true;
}

void Certificates::forget_movers() {
  for (int32_t mover : movers_) mover_place_[mover] = -1;
  movers_.clear();
  mover_path_.clear();
  mover_gaba_.clear();
  mover_before_.clear();
  mover_since_.clear();
  replaced_.clear();
}

void Certificates::forget_snapshots() {
  for (int s = 0; s < kSnapshots; ++s) {
    snapshots_[s] = Snapshot();
    held_[s] = 0;
    forget_far(s);
  }
  newest_ = -1;
}

void Certificates::forget_far(int slot) {
  FarList& list = far_[slot];
  for (const int32_t j : list.neuron) in_far_[j] &= static_cast<uint16_t>(~(1u << slot));
  list.neuron.clear();
  list.drift.clear();
  list.peak.clear();
  list.most_drift = list.most_peak = 0;
}

// False where the list is full: the neuron's drift is then one of the rest.
bool Certificates::add_far(int slot, int32_t neuron, float drift) {
  FarList& list = far_[slot];
  assert(!(in_far_[neuron] >> slot & 1) && !covers(snapshots_[slot], mover_place_[neuron]));
  if (list.neuron.size() >= far_room_) {
    snapshots_[slot].level = std::numeric_limits<float>::max();  // whoever drifts now is one of the rest at once
    return false;
  }
  if (!far_place_) far_place_.reset(new int32_t[neurons_ * kSnapshots]);
  in_far_[neuron] |= static_cast<uint16_t>(1u << slot);
  far_place_[static_cast<int64_t>(neuron) * kSnapshots + slot] = static_cast<int32_t>(list.neuron.size());
  list.neuron.push_back(neuron);
  list.drift.push_back(drift);
  list.peak.push_back(drift);
  const size_t size = list.neuron.size();
  if (size == far_room_ / 8 || size == far_room_ / 4 || size == far_room_ / 2) snapshots_[slot].level *= 2;
  return true;
}

// A scan should keep about as many neurons as a list holds: fewer waste reach, more are sorted for nothing.
void Certificates::choose_gap() {
  const int64_t made = made_.load();
  if (made < 64) return;
  const int64_t overflowed = overflowed_.load();
  if (overflowed * 2 > made) {
    gap_ = std::max(kGapLeast, 1.15f * static_cast<float>(reach_.load()) / overflowed / (1 << 30));
  } else if (overflowed * 8 < made) {
    gap_ = std::min(kGapMost, 1.25f * gap_);
  }
  made_ = overflowed_ = reach_ = 0;
}

// A record's drift counts from its snapshot: a new one is worth a slot once the newest has drifted, or has many far
// neurons. The neurons that drifted most become movers first. A few an epoch, or live records would lose theirs.
bool Certificates::worth_a_snapshot() {
  if (newest_ < 0) return true;
  const Snapshot& newest = snapshots_[newest_];
  const bool same_epoch = newest_epoch_ == epoch_;
  const bool stale = newest.delta - newest.start >= (same_epoch ? kDriftedAgain : kDrifted) * gap_ ||
                     newest.movers != static_cast<int>(movers_.size()) ||
                     far_[newest_].neuron.size() >= static_cast<size_t>(newest.far_start + kFarSnapshot);
  if (!stale || (same_epoch && taken_ >= kSnapshots / 4)) return false;
  taken_ = same_epoch ? taken_ + 1 : 1;
  return true;
}

void Certificates::take_snapshot() {
  if (!active_) return;
  choose_gap();
  if (!worth_a_snapshot()) return;
  choose_movers(true);
  if (!base_) {
    base_.reset(new float[neurons_ * kSnapshots]);
    ask_huge_pages(base_.get(), neurons_ * kSnapshots * sizeof(float));
  }
  // The slot with the fewest live records: those are made again when their samples come by.
  newest_ = 0;
  for (int s = 1; s < kSnapshots; ++s)
    if (held_[s] < held_[newest_]) newest_ = s;
  held_[newest_] = 0;
  forget_far(newest_);
  newest_epoch_ = epoch_;
  Snapshot& snapshot = snapshots_[newest_];
  snapshot.id = ++generation_ * kSnapshots + newest_;
  snapshot.movers = static_cast<int>(movers_.size());
  snapshot.level = far_room_ > 0 ? kFar * gap_ : std::numeric_limits<float>::max();
  // Drifts count from where the rows were at the era's start, and some have moved since.
  snapshot.delta = 0;
  for_each_moved([&](int64_t j) {
    if (covers(snapshot, mover_place_[j])) return;
    const float drift = round_up(distance_[j]);
    if (!(drift <= snapshot.level) && add_far(newest_, static_cast<int32_t>(j), drift)) return;
    if (!(drift <= snapshot.delta)) snapshot.delta = drift;
  });
  snapshot.far_start = static_cast<int>(far_[newest_].neuron.size());
  snapshot.before = snapshot.start = snapshot.delta;
  snapshot.taken = snapshot.before_rows = rows_;
  float least = 1.f;
  for (int64_t j = 0; j < neurons_; ++j) least = std::min(least, path_gaba_[2 * j + 1]);
  snapshot.gaba_min = least;
  most_far(newest_);
}

void Certificates::begin_moves(Delta* delta) const {
  for (int s = 0; s < kSnapshots; ++s) delta->value[s] = snapshots_[s].delta;
  delta->path_max = path_max_;
  delta->far.clear();
}

void Certificates::prefetch_moved(int64_t neuron) const {
  __builtin_prefetch(&past_[neuron]);
  __builtin_prefetch(&distance_[neuron], 1);
  __builtin_prefetch(&path_gaba_[2 * neuron], 1);
  __builtin_prefetch(&farthest_[neuron], 1);
  __builtin_prefetch(&mover_place_[neuron]);
  __builtin_prefetch(&stamp_of_[neuron], 1);
  __builtin_prefetch(&in_far_[neuron]);
  if (base_) __builtin_prefetch(&base_[neuron * kSnapshots], 1);
}

void Certificates::moved(int64_t neuron, double distance, float gaba, Delta* delta) {
  const double past = past_[neuron], length = past + distance;
  distance_[neuron] = distance;
  farthest_[neuron] = std::max(farthest_[neuron], static_cast<float>(distance));
  moved_[neuron >> 6] |= uint64_t{1} << (neuron & 63);
  const float path = round_up(length);
  path_gaba_[2 * neuron] = path;
  path_gaba_[2 * neuron + 1] = gaba;
  const int place = mover_place_[neuron];
  if (place >= 0) {
    mover_path_[place] = path;
    mover_gaba_[place] = gaba;
  }
  if (!(length <= delta->path_max)) delta->path_max = length;
  if (newest_ >= 0) drift(neuron, past, path, delta);
}

void Certificates::drift(int64_t neuron, double past, float path, Delta* delta) {
  float* base = &base_[neuron * kSnapshots];
  if (stamp_of_[neuron] < snapshots_[newest_].id) {
    // Snapshots taken since the neuron last moved: it has stood still, so it is now where it was then.
    for (int s = 0; s < kSnapshots; ++s)
      if (snapshots_[s].id > stamp_of_[neuron]) base[s] = static_cast<float>(past);
    stamp_of_[neuron] = snapshots_[newest_].id;
  }
  // Few drifts are new largest ones: the others pass by together.
  uint32_t look = in_far_[neuron];
  for (int s = 0; s < kSnapshots; ++s) look |= static_cast<uint32_t>(!(path - base[s] <= delta->value[s])) << s;
  for (; look; look &= look - 1) {
    const int s = __builtin_ctz(look);
    const Snapshot& snapshot = snapshots_[s];
    if (snapshot.id < 0) continue;
    const float drift = path - base[s];
    if (in_far_[neuron] >> s & 1) {
      FarList& list = far_[s];
      const int32_t at = far_place_[neuron * kSnapshots + s];
      assert(list.neuron[at] == neuron);
      list.drift[at] = drift;
      if (!(drift <= list.peak[at])) list.peak[at] = drift;
    } else if (covers(snapshot, mover_place_[neuron])) {
      continue;
    } else if (drift <= snapshot.level) {
      delta->value[s] = drift;
    } else {
      delta->far.push_back({static_cast<int32_t>(neuron), s, drift});
    }
  }
}

void Certificates::merge(const Delta& delta) {
  for (int s = 0; s < kSnapshots; ++s)
    if (!(delta.value[s] <= snapshots_[s].delta)) snapshots_[s].delta = delta.value[s];
  for (const Far& far : delta.far) {
    float& rest = snapshots_[far.slot].delta;
    if (!add_far(far.slot, far.neuron, far.drift) && !(far.drift <= rest)) rest = far.drift;
  }
  if (!(delta.path_max <= path_max_)) {
    path_max_ = delta.path_max;
    update_slack();
  }
}

void Certificates::most_far(int slot) {
  FarList& list = far_[slot];
  list.most_drift = list.most_peak = 0;
  for (size_t k = 0; k < list.neuron.size(); ++k) {
    if (!(list.drift[k] <= list.most_drift)) list.most_drift = list.drift[k];
    if (!(list.peak[k] <= list.most_peak)) list.most_peak = list.peak[k];
  }
}

void Certificates::step_done(int64_t rows) {
  rows_ += rows;
  for (int s = 0; s < kSnapshots; ++s) most_far(s);
}

}  // namespace ssd::cpu
