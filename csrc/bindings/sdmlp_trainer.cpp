// ssd_kernels._cpu.SdmlpTrainer: the fused trainer over raw pointers. The GIL is released while it trains, and taken
// for a moment to let Python handle signals.
#include "ssd/sdmlp_trainer.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

using cpu::SdmlpActivations;
using cpu::SdmlpConfig;
using cpu::SdmlpEpoch;
using cpu::SdmlpPenalty;
using cpu::SdmlpStats;
using cpu::SdmlpTeacher;
using cpu::SdmlpTrainer;

struct Interrupt {
  py::object should_stop;
  bool raised = false;

  static bool poll(void* context) {
    auto* self = static_cast<Interrupt*>(context);
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return self->raised = true;
    if (self->should_stop.is_none()) return false;
    try {
      return self->should_stop().cast<bool>();
    } catch (py::error_already_set& error) {
      error.restore();
      return self->raised = true;
    }
  }
};

// A Python callable bytes -> list of bytes, one of each process, by rank.
class PythonExchange : public cpu::SdmlpExchange {
 public:
  explicit PythonExchange(py::function gather) : gather_(std::move(gather)) {}
  ~PythonExchange() override {
    py::gil_scoped_acquire gil;
    gather_ = py::function();
  }
  std::vector<std::string> gather(const std::string& bytes) override {
    py::gil_scoped_acquire gil;
    return gather_(py::bytes(bytes)).cast<std::vector<std::string>>();
  }

 private:
  py::function gather_;
};

// share: () or (gather, rank, size, by_neurons, first, all_neurons).
cpu::SdmlpShare to_share(const py::tuple& share) {
  if (share.empty()) return {};
  return {std::make_shared<PythonExchange>(share[0].cast<py::function>()),
          share[1].cast<int>(),
          share[2].cast<int>(),
          share[3].cast<bool>(),
          share[4].cast<int64_t>(),
          share[5].cast<int64_t>()};
}

py::dict to_dict(const SdmlpStats& s) {
  static const char* const kNames[cpu::kPhases] = {"select",   "scan",   "forward", "group",
                                                   "backward", "update", "refresh", "dense"};
  py::dict seconds;
  for (int p = 0; p < cpu::kPhases; ++p) seconds[kNames[p]] = s.seconds[p];
  py::dict out;
  out["loss"] = s.loss;
  out["ce"] = s.ce;
  out["kd_hidden"] = s.kd_hidden;
  out["kd_logits"] = s.kd_logits;
  out["grad_norm"] = s.grad_norm;
  out["active_per_row"] = s.active_per_row;
  out["touched"] = s.touched;
  out["steps"] = s.steps;
  out["certified"] = s.certified;
  out["refreshed"] = s.refreshed;
  out["scanned"] = s.scanned;
  out["scored"] = s.scored;
  out["examined"] = s.examined;
  out["sent"] = s.sent;
  out["received"] = s.received;
  out["exchanges"] = s.exchanges;
  out["exchange_seconds"] = s.exchange_seconds;
  out["seconds"] = seconds;
  return out;
}

std::unique_ptr<SdmlpTrainer> make(uintptr_t weight, uintptr_t output_weight, uintptr_t counts, int64_t neurons,
                                   int64_t inputs, int64_t classes, int64_t k, double gaba_switch, float lr,
                                   float momentum, float max_grad_norm, double alpha, double lam, double temperature,
                                   bool reverse_kl, bool exhaustive, int64_t cache_bytes, const std::string& simd,
                                   const py::tuple& share) {
  SdmlpConfig config;
  config.neurons = neurons;
  config.inputs = inputs;
  config.classes = classes;
  config.k = k;
  config.gaba_switch = gaba_switch;
  config.lr = lr;
  config.momentum = momentum;
  config.max_grad_norm = max_grad_norm;
  config.alpha = alpha;
  config.lam = lam;
  config.temperature = temperature;
  config.reverse_kl = reverse_kl;
  config.exhaustive = exhaustive;
  config.cache_bytes = cache_bytes;
  config.simd = simd_level(simd);
  config.share = to_share(share);
  return std::make_unique<SdmlpTrainer>(config, pointer<float>(weight), pointer<float>(output_weight),
                                        pointer<int64_t>(counts));
}

// teacher: () or (targets, neg_entropy, in_units, units, offsets, indices, values, hidden_log_z);
// penalty: () or (weight_importance, weight_anchor, output_importance, output_anchor, coef).
py::tuple train(SdmlpTrainer& trainer, uintptr_t x, uintptr_t y, int64_t samples, uintptr_t order, int64_t count,
                int64_t batch, const py::tuple& teacher, const py::tuple& penalty, int threads,
                const py::object& should_stop) {
  SdmlpTeacher t;
  if (!teacher.empty()) {
    const auto address = [&](int i) { return teacher[i].cast<uintptr_t>(); };
    t = {pointer<double>(address(0)), pointer<double>(address(1)),  pointer<uint8_t>(address(2)),
         teacher[3].cast<int64_t>(),  pointer<int64_t>(address(4)), pointer<int32_t>(address(5)),
         pointer<float>(address(6)),  pointer<double>(address(7))};
  }
  SdmlpPenalty p;
  if (!penalty.empty()) {
    const auto address = [&](int i) { return penalty[i].cast<uintptr_t>(); };
    p = {pointer<float>(address(0)), pointer<float>(address(1)), pointer<float>(address(2)), pointer<float>(address(3)),
         penalty[4].cast<float>()};
  }
  Interrupt interrupt{should_stop};
  SdmlpEpoch epoch;
  epoch.x = pointer<float>(x);
  epoch.y = pointer<int64_t>(y);
  epoch.samples = samples;
  epoch.order = pointer<int64_t>(order);
  epoch.count = count;
  epoch.batch = batch;
  epoch.teacher = teacher.empty() ? nullptr : &t;
  epoch.penalty = penalty.empty() ? nullptr : &p;
  epoch.interrupted = &Interrupt::poll;
  epoch.context = &interrupt;
  SdmlpStats stats;
  {
    py::gil_scoped_release release;
    stats = trainer.train(epoch, threads);
  }
  // A handler that raised left its exception set: it is taken out, so that the caller can store the statistics first.
  py::object error = py::none();
  if (interrupt.raised) {
    py::error_already_set raised;
    error = raised.value();
  }
  py::object failure = py::none();
  if (stats.failure.what) failure = py::make_tuple(stats.failure.what, stats.failure.sample, stats.failure.neuron);
  return py::make_tuple(to_dict(stats), failure, error);
}

py::tuple infer(SdmlpTrainer& trainer, uintptr_t x, int64_t samples, int threads, uintptr_t logits,
                uintptr_t frequencies, uintptr_t keep) {
  SdmlpActivations activations;
  bool finite;
  {
    py::gil_scoped_release release;
    finite = trainer.infer(pointer<float>(x), samples, threads, pointer<float>(logits), pointer<int64_t>(frequencies),
                           pointer<uint8_t>(keep), keep ? &activations : nullptr);
  }
  return py::make_tuple(finite, py::array_t<int64_t>(activations.offsets.size(), activations.offsets.data()),
                        py::array_t<int32_t>(activations.indices.size(), activations.indices.data()),
                        py::array_t<float>(activations.values.size(), activations.values.data()));
}

}  // namespace

void bind_sdmlp_trainer(py::module_& m) {
  m.def("sdmlp_neuron_bounds", &cpu::sdmlp_neuron_bounds, py::kw_only(), py::arg("neurons"), py::arg("size"));
  py::class_<SdmlpTrainer>(m, "SdmlpTrainer")
      .def(py::init(&make), py::kw_only(), py::arg("weight"), py::arg("output_weight"), py::arg("counts"),
           py::arg("neurons"), py::arg("inputs"), py::arg("classes"), py::arg("k"), py::arg("gaba_switch"),
           py::arg("lr"), py::arg("momentum"), py::arg("max_grad_norm"), py::arg("alpha"), py::arg("lam"),
           py::arg("temperature"), py::arg("reverse_kl"), py::arg("exhaustive"), py::arg("cache_bytes"),
           py::arg("simd"), py::arg("share"))
      .def("train", &train, py::kw_only(), py::arg("x"), py::arg("y"), py::arg("samples"), py::arg("order"),
           py::arg("count"), py::arg("batch"), py::arg("teacher"), py::arg("penalty"), py::arg("threads"),
           py::arg("should_stop"))
      .def("infer", &infer, py::kw_only(), py::arg("x"), py::arg("samples"), py::arg("threads"), py::arg("logits"),
           py::arg("frequencies"), py::arg("keep"))
      .def("invalidate", &SdmlpTrainer::invalidate)
      .def("get_velocity", [](const SdmlpTrainer& t, uintptr_t weight,
                              uintptr_t output) { t.get_velocity(pointer<float>(weight), pointer<float>(output)); })
      .def("set_velocity", [](SdmlpTrainer& t, uintptr_t weight, uintptr_t output) {
        t.set_velocity(pointer<float>(weight), pointer<float>(output));
      });
}

}  // namespace ssd::bindings
