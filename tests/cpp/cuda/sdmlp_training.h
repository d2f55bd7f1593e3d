// A small training for the tests of the CUDA engine: its samples, teacher and penalty, the CPU engine on one copy of
// the model, and what the CUDA engine asks of its caller, in vectors of their exact size.
#pragma once

#include <algorithm>
#include <vector>

#include "cases.h"
#include "ssd/sdmlp_engine_cuda.h"
#include "ssd/sdmlp_trainer.h"

namespace ssd::test {

struct Options {
  int samples = 60, inputs = 40, neurons = 300, classes = 5, winners = 5, batch = 24;
  bool teacher = false, reverse_kl = false, penalty = false;
  float momentum = 0;
  double gaba_switch = 150, max_grad_norm = 0.5, temperature = 8;
};

inline void normalize(float* row, int size) {
  float norm = 0;
  for (int d = 0; d < size; ++d) norm += row[d] * row[d];
  for (int d = 0; d < size && norm > 0; ++d) row[d] /= std::sqrt(norm);
}

struct Model {
  std::vector<float> weight, output;  // (R, D), (C, R)
  std::vector<int64_t> counts;
  bool operator==(const Model& other) const {
    return weight == other.weight && output == other.output && counts == other.counts;
  }
};

// What a task brings: samples, a teacher of every third neuron, a penalty towards other weights.
struct Task {
  Options o;
  std::vector<float> x, values, importance, anchor, output_importance, output_anchor;
  std::vector<int64_t> y, order, offsets{0};
  std::vector<double> targets, neg_entropy, hidden_log_z;
  std::vector<uint8_t> in_units, pulled;
  std::vector<int32_t> indices;
  cpu::SdmlpTeacher teacher;
  cpu::SdmlpPenalty penalty;

  Task(const Options& options, Random& random) : o(options) {
    for (int i = 0; i < o.samples; ++i) {
      for (int d = 0; d < o.inputs; ++d) x.push_back(static_cast<float>(std::fabs(random.uniform())));
      normalize(&x[static_cast<size_t>(i * o.inputs)], o.inputs);
      y.push_back(random.below(o.classes));
      order.push_back(i % 3 == 2 ? 3 : (i * 37) % o.samples);  // some stand twice, also within a batch
    }
    make_teacher(random);
    for (int i = 0; i < o.neurons * o.inputs; ++i) {  // some rows are not pulled at all
      importance.push_back(i / o.inputs % 4 ? static_cast<float>(std::fabs(random.uniform())) : 0.f);
      anchor.push_back(static_cast<float>(std::fabs(random.uniform())) * 0.3f);
    }
    for (int i = 0; i < o.neurons * o.classes; ++i) {
      output_importance.push_back(i % o.neurons % 4 ? static_cast<float>(std::fabs(random.uniform())) : 0.f);
      output_anchor.push_back(static_cast<float>(std::fabs(random.uniform())) * 0.05f);
    }
    for (int j = 0; j < o.neurons; ++j) pulled.push_back(j % 4 != 0 || o.inputs == 0);
    penalty = {importance.data(), anchor.data(), output_importance.data(), output_anchor.data(), 0.5f};
  }

  void make_teacher(Random& random) {
    for (int j = 0; j < o.neurons; ++j) in_units.push_back(j % 3 == 0);
    teacher.units = (o.neurons + 2) / 3;
    for (int i = 0; i < o.samples; ++i) {
      std::vector<double> q;
      double total = 0, entropy = 0, sum = 0;
      for (int c = 0; c < o.classes; ++c) total += q.emplace_back(std::exp(random.uniform()));
      for (double& value : q) {
        value /= total;
        entropy += value * std::log(value);
        targets.push_back(o.reverse_kl ? std::log(value) : value);
      }
      neg_entropy.push_back(entropy);
      for (int j = 0; j < o.neurons; j += 3) {
        if (random.below(6)) continue;
        indices.push_back(j);
        values.push_back(static_cast<float>(std::fabs(random.uniform())));
        sum += std::expm1(values.back() / o.temperature);
      }
      offsets.push_back(static_cast<int64_t>(indices.size()));
      hidden_log_z.push_back(std::log(static_cast<double>(teacher.units) + sum));
    }
    teacher.targets = targets.data();
    teacher.neg_entropy = neg_entropy.data();
    teacher.in_units = in_units.data();
    teacher.offsets = offsets.data();
    teacher.indices = indices.data();
    teacher.values = values.data();
    teacher.hidden_log_z = hidden_log_z.data();
  }

  Model first_model(Random& random) const {
    Model model;
    for (int j = 0; j < o.neurons; ++j) {
      for (int d = 0; d < o.inputs; ++d) model.weight.push_back(static_cast<float>(std::fabs(random.uniform())));
      normalize(&model.weight[static_cast<size_t>(j * o.inputs)], o.inputs);
      model.counts.push_back(random.below(static_cast<int>(o.gaba_switch > 0 ? o.gaba_switch * 1.2 : 3)));
    }
    for (int i = 0; i < o.classes * o.neurons; ++i)
      model.output.push_back(static_cast<float>(std::fabs(random.uniform())) * 0.05f);
    return model;
  }
};

inline std::vector<float> transposed(const std::vector<float>& from, int rows, int columns) {
  std::vector<float> to(from.size());
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c)
      to[static_cast<size_t>(c * rows + r)] = from[static_cast<size_t>(r * columns + c)];
  return to;
}

// The CPU engine at the avx512 level, every neuron scored.
class CpuTraining {
 public:
  CpuTraining(const Task& task, Model& model)
      : task_(task),
        model_(model),
        trainer_(config(task.o), model.weight.data(), model.output.data(), model.counts.data()) {}

  cpu::SdmlpStats train(int64_t begin, int64_t count) {
    cpu::SdmlpEpoch epoch;
    epoch.x = task_.x.data();
    epoch.y = task_.y.data();
    epoch.samples = task_.o.samples;
    epoch.order = task_.order.data() + begin;
    epoch.count = count;
    epoch.batch = task_.o.batch;
    epoch.teacher = task_.o.teacher ? &task_.teacher : nullptr;
    epoch.penalty = task_.o.penalty ? &task_.penalty : nullptr;
    return trainer_.train(epoch, 1);
  }

  // Active neurons and h of the samples order[begin ..], and their logits.
  cpu::SdmlpActivations infer(int64_t begin, int64_t count, std::vector<float>* logits) {
    const size_t inputs = static_cast<size_t>(task_.o.inputs);
    std::vector<float> x;
    for (int64_t b = begin; b < begin + count; ++b) {
      const auto row = task_.x.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(task_.order[b]) * inputs);
      x.insert(x.end(), row, row + static_cast<std::ptrdiff_t>(inputs));
    }
    logits->resize(static_cast<size_t>(count * task_.o.classes));
    const std::vector<uint8_t> keep(model_.counts.size(), 1);
    cpu::SdmlpActivations found;
    CHECK(trainer_.infer(x.data(), count, 1, logits->data(), nullptr, keep.data(), &found));
    return found;
  }

  void velocity(std::vector<float>* weight, std::vector<float>* output) const {
    weight->resize(model_.weight.size());
    output->resize(model_.output.size());
    if (task_.o.momentum > 0) trainer_.get_velocity(weight->data(), output->data());
  }

 private:
  static cpu::SdmlpConfig config(const Options& o) {
    cpu::SdmlpConfig c;
    c.neurons = o.neurons;
    c.inputs = o.inputs;
    c.classes = o.classes;
    c.k = o.winners;
    c.gaba_switch = o.gaba_switch;
    c.momentum = o.momentum;
    c.max_grad_norm = static_cast<float>(o.max_grad_norm);
    c.temperature = o.temperature;
    c.reverse_kl = o.reverse_kl;
    c.exhaustive = true;
    c.simd = cpu::SimdLevel::kAvx512;
    return c;
  }
  const Task& task_;
  Model& model_;
  cpu::SdmlpTrainer trainer_;
};

// The CUDA engine's side of a training: a copy of the model, and all that the caller owns.
struct CudaTraining {
  const Task& task;
  int words;
  std::vector<float> weight, output, gaba, weight_velocity, output_velocity, output_importance, output_anchor, floors,
      list_h, list_dh, logits, logits_grad, weight_grad, output_grad;
  std::vector<int64_t> counts, numbers, frequencies;
  std::vector<uint8_t> in_motion;
  std::vector<double> totals, losses, partial;
  std::vector<uint32_t> flags, ready, candidates, active_words;
  std::vector<int32_t> likely, before, list_index, list_count, active;
  cuda::SdmlpSeed seed = {};

  CudaTraining(const Task& t, const Model& model) : task(t), words((t.o.neurons + 31) / 32) {
    const Options& o = t.o;
    const auto size = [](int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
    weight_velocity.assign(size(o.neurons, o.inputs), 0.f);
    output_velocity.assign(size(o.neurons, o.classes), 0.f);
    in_motion.assign(size(o.neurons, 1), 0);
    numbers.assign(cuda::kNumbers, 0);
    totals.assign(cuda::kTotals, 0);
    flags = {1, 0, 0, 0xffffffffu};
    likely.assign(size(o.samples, o.winners + 1), -1);
    ready.assign(size(o.batch, 1), 0);
    floors = unwritten<float>(o.batch);
    candidates = unwritten<uint32_t>(size(o.batch, words));
    active_words.assign(size(o.batch, words), 0);
    before.assign(size(o.batch, words), 0);
    list_index.assign(size(o.batch, o.neurons), 0);
    list_h.assign(size(o.batch, o.neurons), 0);
    list_dh.assign(size(o.batch, o.neurons), 0);
    list_count.assign(size(o.batch, 1), 0);
    logits = unwritten<float>(size(o.batch, o.classes));
    logits_grad = unwritten<float>(size(o.batch, o.classes));
    losses = unwritten<double>(size(3, o.batch));
    weight_grad = unwritten<float>(size(o.neurons, o.inputs));
    output_grad = unwritten<float>(size(o.neurons, o.classes));
    active.assign(size(o.neurons, 1), 0);
    frequencies.assign(size(o.neurons, 1), 0);
    int64_t blocks;
    CHECK(!cuda::sdmlp_blocks(o.neurons, 0, &blocks));
    partial = unwritten<double>(3 * blocks);
    output_importance = transposed(t.output_importance, o.classes, o.neurons);
    output_anchor = transposed(t.output_anchor, o.classes, o.neurons);
    load(model);
  }

  void load(const Model& model) {
    weight = model.weight;
    output = transposed(model.output, task.o.classes, task.o.neurons);
    counts = model.counts;
    gaba.clear();
    for (const int64_t count : counts) {
      const double g = task.o.gaba_switch > 0 ? -1.0 + 2.0 * static_cast<double>(count) / task.o.gaba_switch : 1;
      gaba.push_back(static_cast<float>(g > 1 ? 1 : g < -1 ? -1 : g));
    }
  }

  // Addresses, for training on order[begin .. begin + count).
  const cuda::SdmlpSeed& prepared(int64_t begin, int64_t count) {
    numbers[cuda::kPosition] = 0;
    numbers[cuda::kCount] = count;
    seed.weight = weight.data();
    seed.output = output.data();
    seed.counts = counts.data();
    seed.gaba = gaba.data();
    if (task.o.momentum > 0) {
      seed.weight_velocity = weight_velocity.data();
      seed.output_velocity = output_velocity.data();
      seed.in_motion = in_motion.data();
    }
    seed.x = task.x.data();
    seed.y = task.y.data();
    seed.order = task.order.data() + begin;
    if (task.o.teacher) {
      seed.targets = task.targets.data();
      seed.neg_entropy = task.neg_entropy.data();
      seed.in_units = task.in_units.data();
      seed.units = task.teacher.units;
      seed.offsets = task.offsets.data();
      seed.indices = task.indices.data();
      seed.values = task.values.data();
      seed.hidden_log_z = task.hidden_log_z.data();
    }
    if (task.o.penalty) {
      seed.weight_importance = task.importance.data();
      seed.weight_anchor = task.anchor.data();
      seed.output_importance = output_importance.data();
      seed.output_anchor = output_anchor.data();
      seed.pulled = task.pulled.data();
      seed.coef = task.penalty.coef;
    }
    seed.numbers = numbers.data();
    seed.totals = totals.data();
    seed.flags = flags.data();
    seed.likely = likely.data();
    seed.floors = floors.data();
    seed.ready = ready.data();
    seed.candidates = candidates.data();
    seed.active_words = active_words.data();
    seed.before = before.data();
    seed.list_index = list_index.data();
    seed.list_h = list_h.data();
    seed.list_dh = list_dh.data();
    seed.list_count = list_count.data();
    seed.logits = logits.data();
    seed.logits_grad = logits_grad.data();
    seed.losses = losses.data();
    seed.weight_grad = weight_grad.data();
    seed.output_grad = output_grad.data();
    seed.active = active.data();
    seed.partial = partial.data();
    seed.frequencies = frequencies.data();
    return seed;
  }

  cuda::SdmlpStep step(const cuda::SdmlpSeed* seeds, int64_t count) const {
    const Options& o = task.o;
    const cpu::SdmlpConfig c;
    return {o.neurons,    o.inputs,   o.classes,
            o.winners,    o.batch,    o.gaba_switch,
            c.lr,         o.momentum, static_cast<float>(o.max_grad_norm),
            c.alpha,      c.lam,      o.temperature,
            o.reverse_kl, true,       seeds,
            count,        0,          nullptr};
  }

  Model model() const { return {weight, transposed(output, task.o.neurons, task.o.classes), counts}; }
};

}  // namespace ssd::test
