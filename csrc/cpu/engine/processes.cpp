// One model trained by several processes (SdmlpShare): what they exchange in a step, all of it before the update, so a
// step that cannot be ended leaves the weights of the one before. Every sum that one process makes is made here in its
// order, by all processes alike, so the bits are those of one process.
//   by samples  a row's active neurons, their gradients dh, the gradient of its logits. Each process then sums, for
//               every neuron, the whole batch's pairs in ascending order: a sum costs less than sending its result.
//   by neurons  a row's K + 1 best scores here, of all of which the threshold is taken; then the active neurons, with
//               the columns of V of those touched; then the squared norms of the update ranges, each of one process.
// Rows hold neurons counted from the first one here: those of processes before are negative.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

#include "engine/state.h"

namespace ssd::cpu {
namespace {

class Message {
 public:
  template <class T>
  void put(const T* values, int64_t n) {
    bytes_.append(reinterpret_cast<const char*>(values), static_cast<size_t>(n) * sizeof(T));
  }
  template <class T>
  void put(const T& value) {
    put(&value, 1);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(const std::string& bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}
  template <class T>
  void take(T* values, int64_t n) {
    const size_t size = static_cast<size_t>(n) * sizeof(T);
    if (n < 0 || size > static_cast<size_t>(end_ - at_)) throw std::runtime_error("a process sent too little");
    std::memcpy(values, at_, size);
    at_ += size;
  }
  template <class T>
  T take() {
    T value;
    take(&value, 1);
    return value;
  }

 private:
  const char *at_, *end_;
};

constexpr int64_t kNoSample = std::numeric_limits<int64_t>::max();

// The same fields of all processes.
void merge(Agreement* all, const Agreement& other, bool sum_proved) {
  all->stop |= other.stop;
  all->bad_sample = std::min(all->bad_sample, other.bad_sample);
  all->proved = sum_proved ? all->proved + other.proved : std::min(all->proved, other.proved);
}

}  // namespace

std::vector<int64_t> sdmlp_neuron_bounds(int64_t neurons, int size) {
  const int64_t words = (neurons + 63) / 64;
  std::vector<int64_t> bounds(1, 0);
  for (int rank = 1; rank < size; ++rank) {
    // The end of an update range that is nearest to an even share.
    const int64_t even = neurons * rank / size;
    int64_t nearest = 0;
    for (int c = 0; c <= kUpdateChunks; ++c) {
      const int64_t end = std::min(neurons, words * c / kUpdateChunks * 64);
      if (std::abs(end - even) < std::abs(nearest - even)) nearest = end;
    }
    bounds.push_back(std::max(nearest, bounds.back()));
  }
  bounds.push_back(neurons);
  return bounds;
}

std::vector<std::string> SdmlpTrainer::Impl::gather(const std::string& bytes) {
  const double begin = now();
  std::vector<std::string> parts = cfg.share.exchange->gather(bytes);
  exchange_seconds += now() - begin;
  ++exchanges;
  sent += static_cast<int64_t>(bytes.size());
  if (static_cast<int>(parts.size()) != cfg.share.size) throw std::runtime_error("not every process sent its part");
  for (int p = 0; p < cfg.share.size; ++p)
    if (p != cfg.share.rank) received += static_cast<int64_t>(parts[p].size());
  return parts;
}

void SdmlpTrainer::Impl::agree_on_call(const SdmlpEpoch& epoch) {
  constexpr int kFields = 6;
  const int64_t own[kFields] = {
      epoch.samples, epoch.count, epoch.batch, epoch.teacher != nullptr, epoch.penalty != nullptr, highest_count};
  Message message;
  message.put(own, kFields);
  for (const std::string& part : gather(message.bytes())) {
    int64_t theirs[kFields];
    Reader(part).take(theirs, kFields);
    if (!std::equal(own, own + kFields - 1, theirs))
      throw std::runtime_error("the processes were given different samples, orders or losses");
    highest_count = std::max(highest_count, theirs[kFields - 1]);
  }
}

// The first processes take a sample more where a batch does not divide. Which samples is free: ascending ones, so that
// a sample comes to the same process in nearly every epoch, and its certificate lasts.
std::vector<uint8_t> SdmlpTrainer::Impl::share_batches(const SdmlpEpoch& epoch) const {
  std::vector<uint8_t> owner(epoch.count);
  std::vector<int64_t> at;
  for (int64_t begin = 0; begin < epoch.count; begin += epoch.batch) {
    const int64_t n = std::min(epoch.batch, epoch.count - begin), size = cfg.share.size;
    at.resize(n);
    for (int64_t b = 0; b < n; ++b) at[b] = begin + b;
    std::sort(at.begin(), at.end(), [&](int64_t a, int64_t b) {
      return epoch.order[a] != epoch.order[b] ? epoch.order[a] < epoch.order[b] : a < b;
    });
    int64_t i = 0;
    for (int64_t rank = 0; rank < size; ++rank)
      for (const int64_t end = i + n / size + (rank < n % size); i < end; ++i)
        owner[at[i]] = static_cast<uint8_t>(rank);
  }
  return owner;
}

// The K + 1 best of n scores, of which those below `least` are as good as it: K + 1 neurons reach it.
void SdmlpTrainer::Impl::keep_best(Row& row, const float* score, int n, float least) const {
  const int winners = static_cast<int>(K) + 1;
  row.best.assign(score, score + n);
  if (n > winners) std::nth_element(row.best.begin(), row.best.begin() + K, row.best.end(), std::greater<float>());
  row.best.resize(winners, least);
  for (float& best : row.best) best = best < least ? least : best;
}

// The threshold of every row from the best scores of all processes; then its active neurons here.
void SdmlpTrainer::Impl::merge_thresholds(int batch, Agreement* agreed) {
  const int64_t winners = K + 1;
  Message message;
  message.put(*agreed);
  for (int b = 0; b < batch; ++b) {
    rows[b].best.resize(winners, -1.f);  // one with a bad score may have none
    message.put(rows[b].best.data(), winners);
  }
  const std::vector<std::string> parts = gather(message.bytes());
  std::vector<float> best(parts.size() * batch * winners);
  for (size_t p = 0; p < parts.size(); ++p) {
    Reader reader(parts[p]);
    merge(agreed, reader.take<Agreement>(), false);
    for (int b = 0; b < batch; ++b) reader.take(&best[(b * parts.size() + p) * winners], winners);
  }
  if (agreed->stop || agreed->bad_sample != kNoSample) return;
  constexpr int kRows = 8;
  team->for_each((batch + kRows - 1) / kRows, [&](int c, int) {
    for (int b = c * kRows; b < std::min(batch, (c + 1) * kRows); ++b) {
      Row& row = rows[b];
      float* begin = &best[b * parts.size() * winners];
      std::nth_element(begin, begin + K, begin + parts.size() * winners, std::greater<float>());
      row.threshold = begin[K];
      inhibit(row, row.index.data(), row.h.data(), row.count);
    }
  });
}

// The all-active form wants no more of a row than its threshold.
void SdmlpTrainer::Impl::gather_thresholds(const uint8_t* owner, int batch, Agreement* agreed) {
  Message message;
  message.put(*agreed);
  for (int b = 0; b < batch; ++b)
    if (owner[b] == cfg.share.rank) message.put(rows[b].threshold);
  const std::vector<std::string> parts = gather(message.bytes());
  agreed->proved = 0;
  for (int p = 0; p < cfg.share.size; ++p) {
    Reader reader(parts[p]);
    merge(agreed, reader.take<Agreement>(), true);
    for (int b = 0; b < batch; ++b)
      if (owner[b] == p) rows[b].threshold = reader.take<float>();
  }
}

// Every row as the process that found its winners left it after forward().
void SdmlpTrainer::Impl::gather_rows(const uint8_t* owner, int batch, Agreement* agreed) {
  const bool good = !agreed->stop && agreed->bad_sample == kNoSample;
  Message message;
  message.put(*agreed);
  for (int b = 0; good && b < batch; ++b) {
    if (owner[b] != cfg.share.rank) continue;
    const Row& row = rows[b];
    const double losses[3] = {row.ce, row.kd_hidden, row.kd_logits};
    message.put(row.count);
    message.put(losses, 3);
    message.put(&dy[static_cast<size_t>(b) * Cp], C);
    message.put(row.index.data(), row.count);
    message.put(row.h.data(), row.count);
    message.put(row.dh.data(), row.count);
  }
  const std::vector<std::string> parts = gather(message.bytes());
  agreed->proved = 0;
  for (const std::string& part : parts) merge(agreed, Reader(part).take<Agreement>(), true);
  if (agreed->stop || agreed->bad_sample != kNoSample) return;
  for (int p = 0; p < cfg.share.size; ++p) {
    if (p == cfg.share.rank) continue;
    Reader reader(parts[p]);
    reader.take<Agreement>();
    for (int b = 0; b < batch; ++b) {
      if (owner[b] != p) continue;
      Row& row = rows[b];
      double losses[3];
      row.count = reader.take<int>();
      reader.take(losses, 3);
      row.ce = losses[0];
      row.kd_hidden = losses[1];
      row.kd_logits = losses[2];
      float* gradient = &dy[static_cast<size_t>(b) * Cp];
      reader.take(gradient, C);
      std::fill(gradient + C, gradient + Cp, 0.f);
      row.reserve(row.count);
      reader.take(row.index.data(), row.count);
      reader.take(row.h.data(), row.count);
      reader.take(row.dh.data(), row.count);
      cut_into_chunks(row);
    }
  }
}

// The active neurons of every row, ascending, from those of all processes, and the columns of V that they need.
// It is long because one message is packed and taken apart here, in one order.
void SdmlpTrainer::Impl::gather_lists(int batch) {
  if (static_cast<int64_t>(touched_slot.size()) != R) touched_slot.assign(R, -1);
  std::vector<int32_t> counts(batch), touched, slots;
  for (int b = 0; b < batch; ++b) {
    const Row& row = rows[b];
    counts[b] = row.count;
    for (int i = 0; i < row.count; ++i) {
      int32_t& slot = touched_slot[row.index[i]];
      if (slot < 0) {
        slot = static_cast<int32_t>(touched.size());
        touched.push_back(row.index[i]);
      }
      slots.push_back(slot);
    }
  }
  Message message;
  message.put(counts.data(), batch);
  message.put(static_cast<int32_t>(touched.size()));
  for (const int32_t j : touched) message.put(static_cast<int32_t>(j + cfg.share.first));
  for (const int32_t j : touched) message.put(&output[j * Cp], C);
  message.put(slots.data(), static_cast<int64_t>(slots.size()));
  for (int b = 0; b < batch; ++b) message.put(rows[b].h.data(), rows[b].count);
  for (const int32_t j : touched) touched_slot[j] = -1;

  const std::vector<std::string> parts = gather(message.bytes());
  struct Part {
    std::vector<int32_t> counts, neuron, slots;
    std::vector<float> h;
    int32_t base = 0;  // its first slot among all
  };
  std::vector<Part> all(parts.size());
  int32_t base = 0;
  for (size_t p = 0; p < parts.size(); ++p) {
    Part& part = all[p];
    Reader reader(parts[p]);
    part.base = base;
    part.counts.resize(batch);
    reader.take(part.counts.data(), batch);
    part.neuron.resize(reader.take<int32_t>());
    reader.take(part.neuron.data(), static_cast<int64_t>(part.neuron.size()));
    base += static_cast<int32_t>(part.neuron.size());
    gathered_output.resize(std::max(gathered_output.size(), static_cast<size_t>(base) * Cp));
    for (size_t t = 0; t < part.neuron.size(); ++t) {
      float* column = &gathered_output[(part.base + t) * Cp];
      reader.take(column, C);
      std::fill(column + C, column + Cp, 0.f);
    }
    int64_t entries = 0;
    for (const int32_t count : part.counts) entries += count;
    part.slots.resize(entries);
    part.h.resize(entries);
    reader.take(part.slots.data(), entries);
    reader.take(part.h.data(), entries);
  }
  std::vector<int64_t> at(parts.size(), 0);
  for (int b = 0; b < batch; ++b) {
    Row& row = rows[b];
    int64_t total = 0;
    for (const Part& part : all) total += part.counts[b];
    row.reserve(total);
    if (static_cast<int64_t>(row.slot.size()) < total) row.slot.resize(row.index.size());
    int to = 0;
    for (size_t p = 0; p < all.size(); ++p) {
      const Part& part = all[p];
      if (static_cast<int>(p) == cfg.share.rank) row.own_begin = to;
      for (int i = 0; i < part.counts[b]; ++i, ++at[p], ++to) {
        const int32_t slot = part.slots[at[p]];
        row.slot[to] = part.base + slot;
        row.index[to] = static_cast<int32_t>(part.neuron[slot] - cfg.share.first);
        row.h[to] = part.h[at[p]];
      }
      if (static_cast<int>(p) == cfg.share.rank) row.own_end = to;
    }
    row.count = to;
  }
}

// forward() of a row whose active neurons are those of all processes; dh is that of the neurons here.
void SdmlpTrainer::Impl::forward_gathered(const SdmlpEpoch& epoch, int which, int batch) {
  Row& row = rows[which];
  kernel.output_row(row.slot.data(), row.h.data(), row.count, gathered_output.data(), Cp,
                    &y[static_cast<size_t>(which) * Cp]);
  logit_losses(epoch, which, batch);
  std::fill_n(row.dh.begin(), row.count, 0.f);
  kernel.backward_row(row.index.data() + row.own_begin, row.own_end - row.own_begin, output.data(), static_cast<int>(C),
                      Cp, &dy[static_cast<size_t>(which) * Cp], row.dh.data() + row.own_begin);
  hidden_loss(epoch, which, batch);
  cut_into_chunks(row);
}

double SdmlpTrainer::Impl::gather_norms(bool dense) {
  Message message;
  int64_t touched = 0, highest = highest_count;
  for (const UpdateChunk& chunk : chunks) {
    message.put(chunk.norm2);  // 0 where the range is another process's
    if (dense) continue;       // no lists of touched neurons
    touched += static_cast<int64_t>(chunk.neuron.size());
    for (size_t s = 0; all_active() && s < chunk.neuron.size(); ++s)
      highest = std::max(highest, counts[chunk.neuron[s]] + chunk.first[s + 1] - chunk.first[s]);
  }
  message.put(touched);
  message.put(highest);
  const std::vector<std::string> parts = gather(message.bytes());
  double total = 0;
  for (UpdateChunk& chunk : chunks) chunk.norm2 = 0;
  for (const std::string& part : parts) {
    Reader reader(part);
    for (UpdateChunk& chunk : chunks) chunk.norm2 += reader.take<double>();
    total += static_cast<double>(reader.take<int64_t>());
    highest_count = std::max(highest_count, reader.take<int64_t>());
  }
  return total;
}

void SdmlpTrainer::Impl::gather_products() {
  Message message;
  for (int c = 0; c < kUpdateChunks; ++c) {
    if (chunks[c].begin == chunks[c].end) continue;
    const Products& part = range_products[c];
    message.put(c);
    message.put(part.vw.data(), C * D);
    message.put(part.vg.data(), C);
    message.put(part.vv.data(), C * Cp);
  }
  const std::vector<std::string> parts = gather(message.bytes());
  for (int p = 0; p < cfg.share.size; ++p) {
    if (p == cfg.share.rank) continue;
    const int64_t size = static_cast<int64_t>(sizeof(int) + C * (D + Cp) * sizeof(float) + C * sizeof(double));
    Reader reader(parts[p]);
    for (int64_t i = 0; i < static_cast<int64_t>(parts[p].size()) / size; ++i) {
      const int c = reader.take<int>();
      if (c < 0 || c >= kUpdateChunks) throw std::runtime_error("a process sent an update range that there is not");
      Products& part = range_products[c];
      reader.take(part.vw.data(), C * D);
      reader.take(part.vg.data(), C);
      reader.take(part.vv.data(), C * Cp);
    }
  }
}

bool SdmlpTrainer::Impl::infer_together(int n, bool finite, float* logits) {
  Agreement agreed;
  agreed.bad_sample = finite ? kNoSample : 0;
  merge_thresholds(n, &agreed);
  if (agreed.bad_sample != kNoSample) return false;
  gather_lists(n);
  std::vector<float> outputs(logits ? static_cast<size_t>(n) * Cp : 0);
  team->for_each(logits ? n : 0, [&](int i, int) {
    const Row& row = rows[i];
    float* sum = &outputs[static_cast<size_t>(i) * Cp];
    kernel.output_row(row.slot.data(), row.h.data(), row.count, gathered_output.data(), Cp, sum);
    std::copy_n(sum, C, logits + i * C);
  });
  return true;
}

}  // namespace ssd::cpu
