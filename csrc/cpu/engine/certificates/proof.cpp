// The certificate of one sample: a short list of neurons, scored, and the proof that no other can be active.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>

#include "engine/certificates/certificates.h"

namespace ssd::cpu {

// How much a neuron dismissed at r may have gained on its own threshold since then, by drift and rounding, before it
// can be active or above `threshold`: a neuron with margin m and drift d is dismissed where m + d < room, strictly. A
// threshold that fell by c lowers a neuron's own by g c, at most c; one that rose by c raises it by g_min c at least.
// Margins of dismissed neurons are negative, and scores are not, so their coefficients are positive: where g_min is
// negative nothing is gained from a rise, but nothing lost.
float Certificates::room(const Record& record, const Snapshot& snapshot, float threshold) const {
  const float change = threshold - record.threshold;
  const float shift = change >= 0 ? -std::max(snapshot.gaba_min, 0.f) * change : -change;
  return -(slack_ + shift);
}

// No neuron outside the far list whose margin at r was below this is active now, nor above the threshold.
float Certificates::need(const Record& record, const Snapshot& snapshot, float threshold) const {
  return room(record, snapshot, threshold) - (snapshot.delta + record.strayed);
}

// How much of a record's room is left, as a share of what a new record would have; at least 1 where there is none.
float Certificates::room_left(int64_t sample) const {
  const Record& record = records_[sample];
  const int slot = slot_of(record);
  if (slot < 0) return 1;
  const float whole = -slack_ - record.outside;
  return whole > 0 ? (need(record, snapshots_[slot], record.last) - record.outside) / whole : 1;
}

// The largest margin that a neuron which the visit has not looked at can have had at r.
float Certificates::rest(const Visit& visit) const {
  const Record& record = *visit.record;
  return visit.examined < record.count ? std::max(record.outside, visit.margins[visit.examined / kBlock])
                                       : record.outside;
}

// Lists a neuron, which stands on no list but perhaps that of the likely winners. place: of its bound in the record.
void Certificates::add(Visit* visit, int32_t neuron, int32_t place) const {
  ScratchRow& scratch = *visit->scratch;
  for (int i = 0; i <= k_; ++i) {
    if (scratch.index[i] != neuron) continue;
    scratch.place[i] = place;
    return;
  }
  scratch.place[visit->found] = place;
  scratch.index[visit->found++] = neuron;
}

// Scores what was listed, and raises the bound of the threshold; false when a score is NaN.
bool Certificates::score(Visit* visit) const {
  ScratchRow& scratch = *visit->scratch;
  const int from = visit->scored, count = visit->found - from;
  if (count == 0) return true;
  kernel_->score_rows(visit->x, visit->weight, scratch.index.data() + from, count, inputs_,
                      scratch.score.data() + from);
  visit->scored = visit->found;
  for (int i = from; i < visit->found; ++i)
    if (!(scratch.score[i] >= 0)) return false;
  float* order = scratch.order.data();
  std::copy_n(scratch.score.data(), visit->found, order);
  std::nth_element(order, order + k_, order + visit->found, std::greater<float>());
  assert(!(order[k_] < visit->floor));
  visit->floor = order[k_];
  return true;
}

// Lists the candidates up to `end` that their bounds do not dismiss.
void Certificates::examine(Visit* visit, int end) const {
  const int begin = visit->examined;
  int32_t* kept = visit->scratch->kept.data();
  const int survivors = kernel_->prune(visit->candidates + begin, visit->bounds + begin, end - begin, path_gaba_.data(),
                                       visit->floor, slack_, kept);
  for (int i = 0; i < survivors; ++i) add(visit, visit->candidates[begin + kept[i]], begin + kept[i]);
  visit->examined = end;
}

// The same for the movers, and for those whose place another one has taken since.
void Certificates::examine_movers(Visit* visit) const {
  const Snapshot& snapshot = snapshots_[visit->slot];
  int32_t* kept = visit->scratch->kept.data();
  const int survivors = kernel_->prune_movers(visit->mover_bounds, mover_path_.data(), mover_gaba_.data(),
                                              snapshot.movers, visit->floor, slack_, kept);
  for (int i = 0; i < survivors; ++i)
    if (covers(snapshot, kept[i])) add(visit, movers_[kept[i]], capacity_ + kept[i]);
  for (const int32_t place : replaced_) {
    if (place >= snapshot.movers || covers(snapshot, place)) continue;
    const int32_t neuron = mover_before_[place];
    const float* at = &path_gaba_[2 * static_cast<int64_t>(neuron)];
    if (!(visit->mover_bounds[place] + at[0] + slack_ <= at[1] * visit->floor) || at[1] < 0)
      add(visit, neuron, capacity_ + place);
  }
}

// The same for the far neurons that the record has bounds of. They may stand on any other list too.
void Certificates::examine_extras(Visit* visit) const {
  int32_t* kept = visit->scratch->kept.data();
  const int survivors = kernel_->prune(visit->extras, visit->extra_bounds, visit->record->extras, path_gaba_.data(),
                                       visit->floor, slack_, kept);
  for (int i = 0; i < survivors; ++i) {
    const int32_t neuron = visit->extras[kept[i]];
    if (!listed(*visit, neuron, static_cast<int>(k_) + 1)) add(visit, neuron, capacity_ + movers_max_ + kept[i]);
  }
}

bool Certificates::listed(const Visit& visit, int32_t neuron, int from) const {
  const int32_t *index = visit.scratch->index.data(), *end = index + visit.found;
  return std::find(index + from, end, neuron) != end;
}

// Lists the far neurons that are neither dismissed by their own drift nor listed already, nor dismissed by a bound in
// the record; false when they are too many.
bool Certificates::examine_far(Visit* visit) const {
  const FarList& far = far_[visit->slot];
  const Record& record = *visit->record;
  const float margin = rest(*visit), limit = room(record, snapshots_[visit->slot], visit->floor);
  if (margin + far.most_drift + std::max(far.most_peak, record.strayed) < limit) return true;
  const int32_t* const extras_end = visit->extras + record.extras;
  const int size = static_cast<int>(far.neuron.size()), most = visit->found + kFarScored;
  for (int k = 0; k < size; ++k) {
    const float before = k < record.known ? far.peak[k] : record.strayed;
    if (margin + far.drift[k] + before < limit) continue;
    const int32_t neuron = far.neuron[k];
    if (std::find(visit->extras, const_cast<int32_t*>(extras_end), neuron) != extras_end || listed(*visit, neuron, 0))
      continue;
    if (visit->found == most) return false;
    const int extra = record.extras + visit->fresh;
    visit->scratch->place[visit->found] = extra < kFarBounds ? capacity_ + movers_max_ + extra : -1;
    visit->fresh += extra < kFarBounds;
    visit->scratch->index[visit->found++] = neuron;
  }
  return true;
}

// Readies a visit, and scores the sample's likely winners: false without a record, or with a NaN among the scores.
bool Certificates::start(Visit* visit, int64_t sample) {
  if (sample >= recorded_) return false;
  visit->record = &records_[sample];
  visit->slot = slot_of(*visit->record);
  if (visit->slot < 0) return false;
  const int winners = static_cast<int>(k_) + 1;
  ScratchRow& scratch = *visit->scratch;
  const size_t most = winners + capacity_ + movers_max_ + kFarBounds + kFarScored + 16;
  if (scratch.index.size() < most) {
    scratch.index.resize(most);
    scratch.score.resize(most);
    scratch.kept.resize(most);
    scratch.place.resize(most);
    scratch.order.resize(most);
  }
  visit->candidates = &candidates_[sample * capacity_];
  visit->bounds = &bounds_[sample * capacity_];
  visit->margins = &margins_[sample * (capacity_ / kBlock)];
  visit->mover_bounds = &mover_bounds_[sample * movers_max_];
  visit->extras = &extras_[sample * kFarBounds];
  visit->extra_bounds = &extra_bounds_[sample * kFarBounds];
  visit->hints = likely_ + sample * winners;
  std::copy_n(visit->hints, winners, scratch.index.data());
  std::fill_n(scratch.place.data(), winners, -1);
  visit->found = winners;
  return score(visit);
}

// What was scored gets its bound renewed, and the winners become the next visit's likely ones.
void Certificates::renew(Visit* visit) const {
  const ScratchRow& scratch = *visit->scratch;
  const float threshold = visit->floor;
  int hinted = 0;
  for (int i = 0; i < visit->found; ++i) {
    const int32_t place = scratch.place[i];
    const float bound = static_cast<float>(scratch.score[i] - nearest(scratch.index[i]));
    if (place >= capacity_ + movers_max_) {
      visit->extras[place - capacity_ - movers_max_] = scratch.index[i];
      visit->extra_bounds[place - capacity_ - movers_max_] = bound;
    } else if (place >= capacity_) {
      visit->mover_bounds[place - capacity_] = bound;
    } else if (place >= 0) {
      visit->bounds[place] = bound;
    }
    if (scratch.score[i] > threshold) visit->hints[hinted++] = scratch.index[i];
  }
  for (int i = 0; i < visit->found && hinted <= k_; ++i)
    if (scratch.score[i] == threshold) visit->hints[hinted++] = scratch.index[i];
  assert(hinted == k_ + 1);
  visit->record->last = threshold;
  visit->record->extras += visit->fresh;
}

bool Certificates::certify(int64_t sample, const float* x, const float* weight, ScratchRow& scratch, int* count,
                           float* threshold) {
  Visit visit{};
  visit.x = x;
  visit.weight = weight;
  visit.scratch = &scratch;
  if (!start(&visit, sample)) return false;
  const Record& record = *visit.record;
  const Snapshot& snapshot = snapshots_[visit.slot];
  // The movers and the best candidates come first: where a likely winner has fallen back, they raise the bound.
  examine(&visit, std::min(record.count, 2 * kBlock));
  examine_movers(&visit);
  if (!score(&visit)) return false;
  // Then every block that the one inequality does not dismiss whole, and the far neurons, by the margins that are left.
  const float least = need(record, snapshot, visit.floor);
  int end = visit.examined;
  while (end < record.count && !(visit.margins[end / kBlock] < least)) end += kBlock;
  examine(&visit, std::min(end, static_cast<int>(record.count)));
  examine_extras(&visit);
  if (!score(&visit)) return false;
  if (!examine_far(&visit) || !score(&visit)) return false;
  // The bound has only risen since blocks and far neurons were dismissed, so those stay dismissed.
  if (!(record.outside < need(record, snapshot, visit.floor))) return false;
  assert(rest(visit) < need(record, snapshot, visit.floor));
  renew(&visit);
  scratch.scored += visit.found;
  scratch.examined += visit.examined + snapshot.movers + record.extras;
  *count = visit.found;
  *threshold = visit.floor;
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

}  // namespace ssd::cpu
