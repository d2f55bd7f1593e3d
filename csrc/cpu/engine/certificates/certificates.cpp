#include "engine/certificates/certificates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ssd::cpu {
namespace {

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
  in_far_.assign(neurons, 0);
  reset();
}

size_t Certificates::far_most() const { return std::min<int64_t>(kFarMost, neurons_ / kFarShare); }

void Certificates::reset() {
  x_ = nullptr;
  samples_ = recorded_ = 0;
  std::fill(past_.begin(), past_.end(), 0.0);
  std::fill(distance_.begin(), distance_.end(), 0.0);
  for (int64_t j = 0; j < neurons_; ++j) path_gaba_[2 * j] = 0.f;
  std::fill(farthest_.begin(), farthest_.end(), 0.f);
  std::fill(moved_.begin(), moved_.end(), uint64_t{0});
  era_rows_ = rows_;
  far_room_ = far_most();
  forget_snapshots();
  path_max_ = 0;
  forget_movers();
  backoff_ = wait_ = 0;
  update_slack();
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
  movers_max_ = static_cast<int>(std::min<int64_t>(kMovers, neurons_ / 4 / kBlock * kBlock));
  capacity_ = static_cast<int>(std::min<int64_t>(kLongest, neurons_ / 4 / kBlock * kBlock));
  const auto bytes = [&] {
    return static_cast<int64_t>(sizeof(Record)) + 4 + 8 * capacity_ + 4 * (capacity_ / kBlock) + 4 * movers_max_ +
           8 * kFarBounds;
  };
  while (capacity_ > kShortest && bytes() * samples > cache_bytes_) {
    if (capacity_ <= kUsual) movers_max_ = movers_max_ / 2 / kBlock * kBlock;
    capacity_ = capacity_ / 2 / kBlock * kBlock;
  }
  usual_ = std::min<int>(kUsual, capacity_);
  const bool usable = capacity_ >= 2 * (k_ + 1) && bytes() > 0;
  recorded_ = usable ? std::min<int64_t>(samples, cache_bytes_ / bytes()) : 0;
  records_.assign(recorded_, Record());
  candidates_.reset(new int32_t[recorded_ * capacity_]);
  bounds_.reset(new float[recorded_ * capacity_]);
  margins_.reset(new float[recorded_ * (capacity_ / kBlock)]);
  mover_bounds_.reset(new float[recorded_ * movers_max_]);
  extras_.reset(new int32_t[recorded_ * kFarBounds]);
  extra_bounds_.reset(new float[recorded_ * kFarBounds]);
  stamp_.assign(samples, -1);
  if (static_cast<int>(movers_.size()) > movers_max_) forget_movers();
  forget_snapshots();
  backoff_ = wait_ = 0;
}

void Certificates::change_gaba(const std::vector<float>& gaba, bool all_move) {
  set_gaba(gaba);
  far_room_ = all_move ? 0 : far_most();
  forget_snapshots();
  live_ = 0;
  active_ = false;
}

void Certificates::update_slack() {
  // Twice the rounding of a score, the rounding of three path lengths and of a margin (README, "Rounding").
  const double score = (static_cast<double>(inputs_) / kernel_->width + 8) * kUnit * 1.001;
  slack_ = static_cast<float>(2 * score + 4 * kUnit * (1 + path_max_) + 8 * kUnit);
}

bool Certificates::begin_epoch(double active_per_row) {
  ++epoch_;
  live_ = 0;
  near_.clear();
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
                      need(record, snapshots_[slot], record.last))) {
      refresh.push_back(i);
    } else if (room_left(sample) < 2 * kCompanyRoom) {
      near_.push_back(sample);
    }
  }
  live_ += live;
  // Where there is no record yet, the step that scans the row makes one as well.
  if (live == 0) refresh.clear();
  return refresh;
}

std::vector<int64_t> Certificates::company(int64_t rows, const std::function<bool(int64_t)>& busy) const {
  std::vector<std::pair<float, int64_t>> near;
  if (!active_) return {};
  for (const int64_t sample : near_) {
    const float left = room_left(sample);
    if (left < kCompanyRoom && !busy(sample)) near.emplace_back(left, sample);
  }
  const int64_t places = (kCompanyMost - rows % kCompanyMost) % kCompanyMost;
  const size_t most = std::min<int64_t>(places, neurons_ * inputs_ * 4 / kCompanyBytes);
  const size_t take = std::min(near.size(), most);
  std::partial_sort(near.begin(), near.begin() + take, near.end());
  std::vector<int64_t> samples;
  for (size_t i = 0; i < take; ++i) samples.push_back(near[i].second);
  return samples;
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

}  // namespace ssd::cpu
