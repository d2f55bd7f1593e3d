// The CUDA engine against the CPU engine's avx512 level. Stepped from the CPU engine's weights: active neurons, h,
// logits and counters bit by bit, in every mixture of teacher, penalty, momentum and switch; and on its own over three
// epochs. Seeds side by side are each alone. What cannot be stepped changes nothing. Skipped without AVX-512.
#include "sdmlp_training.h"

namespace {

using namespace ssd;
using test::CpuTraining;
using test::CudaTraining;
using test::Model;
using test::Options;
using test::Task;

Options random_options(int number, test::Random& random) {
  Options o;
  o.samples = 45;
  o.inputs = number % 3 == 0 ? 4 * (1 + random.below(10)) : 1 + random.below(number % 10 ? 32 : 70);
  o.neurons = 8 + random.below(number % 20 == 7 ? 1500 : 150);
  o.classes = number % 6 == 5 ? 60 + random.below(80) : 1 + random.below(12);
  o.winners = 1 + random.below(std::min(o.neurons - 1, 20));
  o.batch = number % 25 == 9 ? 33 + random.below(8) : 1 + random.below(5);
  o.batch = std::min(o.batch, o.samples);
  o.teacher = random.below(2);
  o.reverse_kl = random.below(3) == 0;
  o.penalty = random.below(3) == 0;
  o.momentum = random.below(3) == 0 ? 0.9f : 0.f;
  o.gaba_switch = number % 4 == 0 ? 0 : 1 + random.below(200);
  o.max_grad_norm = random.below(3) ? 0.5 : 1e9;
  return o;
}

// Makes samples, or some rows of the model, special.
void plant(int number, Task& task, Model& model) {
  const size_t inputs = static_cast<size_t>(task.o.inputs);
  if (number % 8 == 1)  // all neurons equal
    for (size_t i = inputs; i < model.weight.size(); ++i) model.weight[i] = model.weight[i - inputs];
  if (number % 8 == 2)  // rows nearer than the preselection's bound
    for (size_t i = inputs; i < model.weight.size(); ++i)
      model.weight[i] = model.weight[i % inputs] * (1.f + static_cast<float>(i / inputs % 5) * 0x1p-22f);
  if (number % 8 == 3) {  // a row of zeros, a sample of zeros
    std::fill_n(model.weight.begin(), inputs, 0.f);
    std::fill_n(task.x.begin(), inputs, 0.f);
  }
  if (number % 8 == 4)  // ascending scores
    for (size_t i = 0; i < model.weight.size(); ++i) model.weight[i] = i % inputs ? 0.f : 1.f;
}

// Winners, h and logits of the batch in `own` against those that the CPU engine infers.
void compare_forward(int number, CudaTraining& own, const cpu::SdmlpActivations& gold, const std::vector<float>& logits,
                     int64_t count) {
  const Options& o = own.task.o;
  for (int64_t b = 0; b < count; ++b) {
    int64_t at = gold.offsets[static_cast<size_t>(b)];
    int place = 0;
    for (int j = 0; j < o.neurons; ++j) {
      const size_t word = static_cast<size_t>(b * own.words + j / 32);
      if (!(own.active_words[word] >> j % 32 & 1)) continue;
      CHECK(at < gold.offsets[static_cast<size_t>(b + 1)] && gold.indices[static_cast<size_t>(at)] == j,
            "case %d: sample %lld: neuron %d is active", number, static_cast<long long>(b), j);
      const float h = own.list_h[static_cast<size_t>(b * o.neurons + place)];
      CHECK(test::same(h, gold.values[static_cast<size_t>(at)]), "case %d: h of neuron %d", number, j);
      CHECK(own.before[word] + __builtin_popcount(own.active_words[word] & ((1u << j % 32) - 1)) == place);
      ++at;
      ++place;
    }
    CHECK(at == gold.offsets[static_cast<size_t>(b + 1)], "case %d: sample %lld: a neuron is missing", number,
          static_cast<long long>(b));
    for (int c = 0; c < o.classes; ++c) {
      const size_t entry = static_cast<size_t>(b * o.classes + c);
      CHECK(test::same(own.logits[entry], logits[entry]), "case %d: a logit", number);
    }
  }
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(static_cast<double>(a[i]) - b[i]));
  return most;
}

bool near(double a, double b) { return std::fabs(a - b) <= 1e-5 * (std::fabs(a) + std::fabs(b)) + 1e-12; }

// Steps from the CPU engine's weights. Weights after a step differ by the order of fp64 sums at most, but where every
// neuron is active: the CPU engine takes products of matrices then.
void check_steps(int number) {
  test::Random random(static_cast<uint64_t>(number) + 11);
  const Options o = random_options(number, random);
  Task task(o, random);
  Model first = task.first_model(random);
  plant(number, task, first);
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    cuda::emulator::use(schedule);
    Model model = first;
    CpuTraining gold(task, model);
    CudaTraining own(task, model);
    for (int64_t begin = 0, step = 0; begin < o.samples && step < 2; ++step) {
      const int64_t count = std::min<int64_t>(o.batch, o.samples - begin);
      std::vector<float> logits;
      const cpu::SdmlpActivations activations = gold.infer(begin, count, &logits);
      own.load(model);
      const Model before = model;
      gold.velocity(&own.weight_velocity, &own.output_velocity);
      own.output_velocity = test::transposed(own.output_velocity, o.classes, o.neurons);
      const cpu::SdmlpStats stats = gold.train(begin, count);
      std::fill(own.totals.begin(), own.totals.end(), 0);
      const cuda::SdmlpSeed seed = own.prepared(begin, count);
      const char* error = cuda::sdmlp_step(own.step(&seed, 1));
      CHECK(!error, "%s", error);
      CHECK(own.numbers[cuda::kFailure] == 0 && own.numbers[cuda::kPosition] == count, "case %d", number);
      compare_forward(number, own, activations, logits, count);
      const Model after = own.model();
      CHECK(after.counts == model.counts, "case %d: counters", number);
      const double moved = largest_difference(before.weight, model.weight);
      const double off =
          std::max(largest_difference(after.weight, model.weight), largest_difference(after.output, model.output));
      CHECK(off <= 1e-6 + 1e-4 * moved, "case %d: weights differ by %g, moved by %g", number, off, moved);
      const double samples = static_cast<double>(count);
      CHECK(near(own.totals[cuda::kCe] / samples, stats.ce) && near(own.totals[cuda::kNormSum], stats.grad_norm) &&
                near(own.totals[cuda::kKdHidden] / samples, stats.kd_hidden) &&
                near(own.totals[cuda::kKdLogits] / samples, stats.kd_logits),
            "case %d: statistics: norm %g for %g, hidden %g for %g, logits %g for %g", number,
            own.totals[cuda::kNormSum], stats.grad_norm, own.totals[cuda::kKdHidden] / samples, stats.kd_hidden,
            own.totals[cuda::kKdLogits] / samples, stats.kd_logits);
      CHECK(own.totals[cuda::kActiveSum] / samples == stats.active_per_row, "case %d: active", number);
      CHECK(own.totals[cuda::kTouchedSum] == stats.touched, "case %d: touched", number);
      begin += count;
    }
  }
}

// Three epochs on its own, the switch and a teacher in between: as near to the CPU engine as its own forms are.
void check_own_run() {
  test::Random random(3);
  Options o;
  o.samples = 24;
  o.batch = 7;  // the last batch is smaller
  o.neurons = 100;
  o.inputs = 20;
  for (const bool teacher : {false, true}) {
    o.teacher = o.penalty = teacher;
    const Task task(o, random);
    const Model first = task.first_model(random);
    Model model = first;
    CpuTraining gold(task, model);
    CudaTraining own(task, model);
    const cuda::SdmlpSeed& seed = own.prepared(0, o.samples);
    for (int epoch = 0; epoch < 3; ++epoch) {
      gold.train(0, o.samples);
      own.numbers[cuda::kPosition] = 0;
      for (int step = 0; step < 5; ++step) CHECK(!cuda::sdmlp_step(own.step(&seed, 1)));  // one beyond the end
      CHECK(own.numbers[cuda::kPosition] == o.samples && own.numbers[cuda::kSteps] == 4 * (epoch + 1));
    }
    const Model after = own.model();
    CHECK(largest_difference(first.weight, model.weight) > 2e-4, "it should have learnt: %g",
          largest_difference(first.weight, model.weight));
    CHECK(after.counts == model.counts, "counters");
    CHECK(largest_difference(after.weight, model.weight) <= 2e-6, "weights differ by %g",
          largest_difference(after.weight, model.weight));
    CHECK(largest_difference(after.output, model.output) <= 2e-6);
  }
}

// Seeds of one launch are bit by bit what each is alone, also where one of them ends earlier.
void check_seeds() {
  test::Random random(8);
  Options o;
  o.samples = 12;
  o.batch = 5;
  o.neurons = 70;
  o.inputs = 12;
  o.teacher = true;
  const Task tasks[2] = {Task(o, random), Task(o, random)};
  const Model models[2] = {tasks[0].first_model(random), tasks[1].first_model(random)};
  const int64_t counts[2] = {12, 5};
  Model alone[2];
  for (int i = 0; i < 2; ++i) {
    CudaTraining own(tasks[i], models[i]);
    const cuda::SdmlpSeed seed = own.prepared(0, counts[i]);
    for (int step = 0; step < 3; ++step) CHECK(!cuda::sdmlp_step(own.step(&seed, 1)));
    alone[i] = own.model();
  }
  CudaTraining first(tasks[0], models[0]), second(tasks[1], models[1]);
  const cuda::SdmlpSeed seeds[2] = {first.prepared(0, counts[0]), second.prepared(0, counts[1])};
  for (int step = 0; step < 3; ++step) CHECK(!cuda::sdmlp_step(first.step(seeds, 2)));
  CHECK(first.model() == alone[0] && second.model() == alone[1]);
  CHECK(second.numbers[cuda::kSteps] == 1 && first.numbers[cuda::kSteps] == 3);
}

// A step that cannot be taken changes nothing, says why and where, and so do the steps behind it.
void check_failures() {
  test::Random random(5);
  Options o;
  o.samples = 6;
  o.batch = 6;
  o.neurons = 50;
  o.inputs = 9;
  for (const int failure : {cuda::kScoreFailure, cuda::kHiddenFailure, cuda::kStepFailure}) {
    o.teacher = failure == cuda::kHiddenFailure;
    o.max_grad_norm = INFINITY;
    Task task(o, random);
    Model model = task.first_model(random);
    if (failure == cuda::kScoreFailure) task.x[static_cast<size_t>(task.order[2] * o.inputs)] = NAN;
    if (failure == cuda::kHiddenFailure) task.hidden_log_z[static_cast<size_t>(task.order[4])] = NAN;
    CudaTraining own(task, model);
    const cuda::SdmlpSeed& seed = own.prepared(0, o.samples);
    cuda::SdmlpStep step = own.step(&seed, 1);
    if (failure == cuda::kStepFailure) step.lr = 3e38f;
    for (int i = 0; i < 2; ++i) {
      CHECK(!cuda::sdmlp_step(step));
      CHECK(own.numbers[cuda::kFailure] == failure, "%lld for %d", static_cast<long long>(own.numbers[cuda::kFailure]),
            failure);
      CHECK(own.model() == model && own.numbers[cuda::kPosition] == 0 && own.numbers[cuda::kSteps] == 0);
    }
    if (failure == cuda::kScoreFailure) CHECK(own.numbers[cuda::kFailedSample] == task.order[2]);
    if (failure == cuda::kHiddenFailure) CHECK(own.numbers[cuda::kFailedSample] == task.order[4]);
  }
}

// Inference: lists, logits and frequencies of all samples, and nothing else.
void check_inference() {
  test::Random random(6);
  Options o;
  o.samples = 9;
  o.batch = 4;
  o.neurons = 80;
  o.inputs = 16;
  const Task task(o, random);
  Model model = task.first_model(random);
  CpuTraining gold(task, model);
  CudaTraining own(task, model);
  const cuda::SdmlpSeed& seed = own.prepared(0, o.samples);
  std::vector<int64_t> frequencies(model.counts.size());
  for (int64_t begin = 0; begin < o.samples; begin += o.batch) {
    const int64_t count = std::min<int64_t>(o.batch, o.samples - begin);
    CHECK(!cuda::sdmlp_infer(own.step(&seed, 1)));
    std::vector<float> logits;
    const cpu::SdmlpActivations activations = gold.infer(begin, count, &logits);
    compare_forward(-1, own, activations, logits, count);
    for (int64_t b = 0; b < count; ++b)
      for (int i = 0; i < own.list_count[static_cast<size_t>(b)]; ++i)
        CHECK(own.list_index[static_cast<size_t>(b * o.neurons + i)] ==
              activations.indices[static_cast<size_t>(activations.offsets[static_cast<size_t>(b)] + i)]);
    for (const int32_t j : activations.indices) ++frequencies[static_cast<size_t>(j)];
  }
  CHECK(own.frequencies == frequencies && own.numbers[cuda::kPosition] == o.samples && own.model() == model);
}

void check_refusals() {
  cuda::SdmlpStep step = {};
  step.neurons = step.k = 5;
  step.inputs = step.classes = step.batch = step.count = 1;
  CHECK(cuda::sdmlp_step(step) && cuda::sdmlp_infer(step), "K = R");
  step.k = 1;
  step.batch = cuda::kMostSdmlpBatch + 1;
  CHECK(cuda::sdmlp_step(step), "B beyond the most");
}

}  // namespace

int main() {
  test::require_level("avx512");
  for (cuda::emulator::Schedule schedule : cuda::emulator::kSchedules) {
    if (test::kCases < 100 && schedule.order != cuda::emulator::Order::kShuffled) continue;  // sanitizers are slow
    cuda::emulator::use(schedule);
    check_own_run();
    check_seeds();
    check_failures();
    check_inference();
  }
  check_refusals();
  for (int i = 0; i < test::kCases; ++i) check_steps(i);
}
