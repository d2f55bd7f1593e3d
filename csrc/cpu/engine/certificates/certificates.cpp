#include "engine/certificates/certificates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ssd::cpu {
namespace {

constexpr float kFaster = 4;  // how much farther than a mover another neuron gets before it takes the mover's place
constexpr double kUnit = 5.9604644775390625e-08;  // 2^-24

}  // namespace

void Certificates::configure(int64_t neurons, int64_t inputs, int64_t k, int64_t cache_bytes,
                             const SdmlpKernels& kernel) {
  neurons_ = neurons;
  inputs_ = inputs;
  k_ = k;
  cache_bytes_ = cache_bytes;
  kernel_ = &kernel;
  past_.assign(neurons, 0.0);
  distance_.assign(neurons, 0.0);
  path_gaba_.assign(2 * neurons, 0.f);
  farthest_.assign(neurons, 0.f);
  mover_place_.assign(neurons, -1);
  moved_.assign((neurons + 63) / 64, 0);
  stamp_of_.assign(neurons, 0);
  reset();
}

void Certificates::reset() {
  x_ = nullptr;
  samples_ = recorded_ = 0;
  std::fill(past_.begin(), past_.end(), 0.0);
  std::fill(distance_.begin(), distance_.end(), 0.0);
  for (int64_t j = 0; j < neurons_; ++j) path_gaba_[2 * j] = 0.f;
  std::fill(farthest_.begin(), farthest_.end(), 0.f);
  std::fill(moved_.begin(), moved_.end(), uint64_t{0});
  era_rows_ = rows_;
  forget_snapshots();
  path_max_ = 0;
  for (int32_t mover : movers_) mover_place_[mover] = -1;
  movers_.clear();
  mover_path_.clear();
  mover_gaba_.clear();
  mover_before_.clear();
  mover_since_.clear();
  replaced_.clear();
  backoff_ = wait_ = 0;
  update_slack();
}

void Certificates::forget_snapshots() {
  for (auto& snapshot : snapshots_) snapshot = Snapshot();
  for (auto& held : held_) held = 0;
  newest_ = -1;
}

void Certificates::set_gaba(const std::vector<float>& gaba) {
  for (int64_t j = 0; j < neurons_; ++j) path_gaba_[2 * j + 1] = gaba[j];
  for (size_t z = 0; z < movers_.size(); ++z) mover_gaba_[z] = gaba[movers_[z]];
}

void Certificates::bind(const float* x, int64_t samples, int32_t* likely) {
  likely_ = likely;
  if (x == x_ && samples == samples_) return;
  x_ = x;
  samples_ = samples;
  movers_max_ = static_cast<int>(std::min<int64_t>(512, neurons_ / 4 / kBlock * kBlock));
  capacity_ = static_cast<int>(std::min<int64_t>(2048, neurons_ / 4 / kBlock * kBlock));
  const auto bytes = [&] {
    return static_cast<int64_t>(sizeof(Record)) + 4 + 8 * capacity_ + 4 * (capacity_ / kBlock) + 4 * movers_max_;
  };
  while (capacity_ > 64 && bytes() * samples > cache_bytes_) {
    if (capacity_ <= 512) movers_max_ = movers_max_ / 2 / kBlock * kBlock;
    capacity_ = capacity_ / 2 / kBlock * kBlock;
  }
  usual_ = std::min(512, capacity_);
  const bool usable = capacity_ >= 2 * (k_ + 1) && bytes() > 0;
  recorded_ = usable ? std::min<int64_t>(samples, cache_bytes_ / bytes()) : 0;
  records_.assign(recorded_, Record());
  candidates_.reset(new int32_t[recorded_ * capacity_]);
  bounds_.reset(new float[recorded_ * capacity_]);
  margins_.reset(new float[recorded_ * (capacity_ / kBlock)]);
  mover_bounds_.reset(new float[recorded_ * movers_max_]);
  stamp_.assign(samples, -1);
  if (static_cast<int>(movers_.size()) > movers_max_) {
    for (int32_t mover : movers_) mover_place_[mover] = -1;
    movers_.clear();
    mover_path_.clear();
    mover_gaba_.clear();
    mover_before_.clear();
    mover_since_.clear();
    replaced_.clear();
  }
  forget_snapshots();
  backoff_ = wait_ = 0;
}

void Certificates::change_gaba(const std::vector<float>& gaba) {
  set_gaba(gaba);
  forget_snapshots();
  live_ = 0;
  active_ = false;
}

void Certificates::update_slack() {
  // Twice the rounding of a score, the rounding of three path lengths and of a margin (README, "Rounding").
  const double score = (static_cast<double>(inputs_) / kernel_->width + 8) * kUnit * 1.001;
  slack_ = static_cast<float>(2 * score + 4 * kUnit * (1 + path_max_) + 8 * kUnit);
}

// The neurons that got farthest in this era go to Z: to free places or, where a snapshot is taken next, to those of
// movers that hardly move any more.
void Certificates::choose_movers(bool replace) {
  const size_t most = movers_max_;
  if (most == 0) return;
  std::vector<std::pair<float, int32_t>> moved, slow;
  const float least = 0.02f * gap_;
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

bool Certificates::begin_epoch(double active_per_row) {
  ++epoch_;
  live_ = 0;
  // Certificates pay only where a row's active neurons are a small part of its list.
  active_ = recorded_ > 0 && active_per_row < 0.5 * usual_;
  if (active_ && wait_ > 0) {
    --wait_;
    active_ = false;
  }
  if (active_) choose_movers(false);
  if (rows_ - era_rows_ < kEraPasses * samples_) return false;
  era_rows_ = rows_;
  for_each_moved([&](int64_t j) {
    past_[j] += distance_[j];
    distance_[j] = 0;
    farthest_[j] = 0;
  });
  std::fill(moved_.begin(), moved_.end(), uint64_t{0});
  return true;
}

std::vector<int64_t> Certificates::expiring(const int64_t* order, int64_t begin, int64_t end) {
  std::vector<int64_t> refresh;
  float pace[kSnapshots];  // movement per row trained: the last window's, or the snapshot's own where that is larger
  for (int s = 0; s < kSnapshots; ++s) {
    Snapshot& snapshot = snapshots_[s];
    const float last = (snapshot.delta - snapshot.before) / std::max<int64_t>(1, rows_ - snapshot.before_rows);
    const float own = snapshot.delta / std::max<int64_t>(1, rows_ - snapshot.taken);
    pace[s] = 1.5f * std::max(last, own);
    snapshot.before = snapshot.delta;
    snapshot.before_rows = rows_;
  }
  int64_t live = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sample = order[i];
    if (sample >= recorded_ || stamp_[sample] == epoch_) continue;
    stamp_[sample] = static_cast<int32_t>(epoch_);
    const Record& record = records_[sample];
    const int slot = slot_of(record);
    if (slot >= 0) ++live;
    if (slot < 0 && record.retry > epoch_) continue;
    if (slot < 0 || !(record.outside + pace[slot] * static_cast<float>(i - begin + 1) <
                      need(record, snapshots_[slot], record.last)))
      refresh.push_back(i);
  }
  live_ += live;
  // Where there is no record yet, the step that scans the row makes one as well.
  if (live == 0) refresh.clear();
  return refresh;
}

void Certificates::end_epoch(int64_t certified) {
  if (!active_ || live_ == 0) return;
  if (certified * 5 < live_) {  // little was proved: scan for some epochs without keeping records
    backoff_ = std::min(8, backoff_ * 2 + 1);
    wait_ = backoff_;
  } else {
    backoff_ = 0;
  }
}

void Certificates::take_snapshot(const std::vector<float>& gaba) {
  if (!active_) return;
  // A scan should keep about as many neurons as a list holds: fewer waste reach, more are sorted for nothing.
  const int64_t made = made_.load();
  if (made >= 64) {
    const int64_t overflowed = overflowed_.load();
    if (overflowed * 2 > made) {
      gap_ = std::max(0.005f, 1.15f * static_cast<float>(reach_.load()) / overflowed / (1 << 30));
    } else if (overflowed * 8 < made) {
      gap_ = std::min(0.5f, 1.25f * gap_);
    }
    made_ = overflowed_ = reach_ = 0;
  }
  // A record's drift counts from its snapshot: a new one is worth a slot once the newest has drifted, and the neurons
  // that drifted most become movers first. A few an epoch, or live records would lose theirs.
  if (newest_ >= 0) {
    const bool fresh = snapshots_[newest_].movers == static_cast<int>(movers_.size());
    const bool same_epoch = newest_epoch_ == epoch_;
    const float drifted = snapshots_[newest_].delta - snapshots_[newest_].start;
    if (fresh && drifted < (same_epoch ? 0.25f : 0.05f) * gap_) return;
    if (same_epoch && taken_ >= kSnapshots / 4) return;
    taken_ = same_epoch ? taken_ + 1 : 1;
  }
  choose_movers(true);
  if (base_.empty()) base_.resize(neurons_ * kSnapshots);
  // The slot with the fewest live records: those are made again when their samples come by.
  newest_ = 0;
  for (int s = 1; s < kSnapshots; ++s)
    if (held_[s] < held_[newest_]) newest_ = s;
  held_[newest_] = 0;
  newest_epoch_ = epoch_;
  Snapshot& snapshot = snapshots_[newest_];
  snapshot.id = ++generation_ * kSnapshots + newest_;
  snapshot.movers = static_cast<int>(movers_.size());
  double farthest = 0;
  for_each_moved([&](int64_t j) {
    if (!covers(snapshot, mover_place_[j])) farthest = std::max(farthest, distance_[j]);
  });
  snapshot.delta = snapshot.before = snapshot.start = round_up(farthest);
  snapshot.taken = snapshot.before_rows = rows_;
  float least = 1.f;
  for (int64_t j = 0; j < neurons_; ++j) least = gaba[j] < least ? gaba[j] : least;
  snapshot.gaba_min = least;
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
  if (length > delta->path_max) delta->path_max = length;
  if (newest_ < 0) return;
  float* base = &base_[neuron * kSnapshots];
  if (stamp_of_[neuron] < snapshots_[newest_].id) {
    // Snapshots taken since the neuron last moved: it has stood still, so it is now where it was then.
    for (int s = 0; s < kSnapshots; ++s) {
      const Snapshot& snapshot = snapshots_[s];
      if (snapshot.id <= stamp_of_[neuron]) continue;
      base[s] = static_cast<float>(past);
    }
    stamp_of_[neuron] = snapshots_[newest_].id;
  }
  for (int s = 0; s < kSnapshots; ++s) {
    const float drift = place >= 0 && covers(snapshots_[s], place) ? 0.f : path - base[s];
    delta->value[s] = drift > delta->value[s] ? drift : delta->value[s];
  }
}

void Certificates::step_done(int64_t rows) { rows_ += rows; }

void Certificates::merge(const Delta& delta) {
  for (int s = 0; s < kSnapshots; ++s) snapshots_[s].delta = std::max(snapshots_[s].delta, delta.value[s]);
  if (delta.path_max > path_max_) {
    path_max_ = delta.path_max;
    update_slack();
  }
}

}  // namespace ssd::cpu
