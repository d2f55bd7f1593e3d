// The training engine: the record of one training, and the launches of a step.
#include <cstring>

#include "cuda.h"
#include "ssd/sdmlp_engine_cuda.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

int64_t sdmlp_blocks(int64_t neurons, int device) {
  int64_t blocks;
  check_launch(cuda::sdmlp_blocks(neurons, device, &blocks));
  return blocks;
}

// A record of the addresses in `fields`, of which each stands under its name in SdmlpSeed; those left out are null.
// Long because it is one line for each field.
py::bytes sdmlp_seed(const py::dict& fields) {
  cuda::SdmlpSeed seed = {};
  size_t known = 0;
  const auto take = [&](const char* name, auto& field) {
    if (!fields.contains(name)) return;
    ++known;
    using Field = std::remove_reference_t<decltype(field)>;
    if constexpr (std::is_pointer_v<Field>) {
      field = reinterpret_cast<Field>(fields[name].cast<Address>());
    } else {
      field = fields[name].cast<Field>();
    }
  };
#define SSD_TAKE(name) take(#name, seed.name)
  SSD_TAKE(weight);
  SSD_TAKE(output);
  SSD_TAKE(counts);
  SSD_TAKE(gaba);
  SSD_TAKE(weight_velocity);
  SSD_TAKE(output_velocity);
  SSD_TAKE(in_motion);
  SSD_TAKE(x);
  SSD_TAKE(y);
  SSD_TAKE(order);
  SSD_TAKE(targets);
  SSD_TAKE(neg_entropy);
  SSD_TAKE(in_units);
  SSD_TAKE(units);
  SSD_TAKE(offsets);
  SSD_TAKE(indices);
  SSD_TAKE(values);
  SSD_TAKE(hidden_log_z);
  SSD_TAKE(weight_importance);
  SSD_TAKE(weight_anchor);
  SSD_TAKE(output_importance);
  SSD_TAKE(output_anchor);
  SSD_TAKE(pulled);
  SSD_TAKE(coef);
  SSD_TAKE(numbers);
  SSD_TAKE(totals);
  SSD_TAKE(flags);
  SSD_TAKE(likely);
  SSD_TAKE(floors);
  SSD_TAKE(ready);
  SSD_TAKE(candidates);
  SSD_TAKE(active_words);
  SSD_TAKE(before);
  SSD_TAKE(list_index);
  SSD_TAKE(list_h);
  SSD_TAKE(list_dh);
  SSD_TAKE(list_count);
  SSD_TAKE(logits);
  SSD_TAKE(logits_grad);
  SSD_TAKE(losses);
  SSD_TAKE(weight_grad);
  SSD_TAKE(output_grad);
  SSD_TAKE(active);
  SSD_TAKE(partial);
  SSD_TAKE(frequencies);
#undef SSD_TAKE
  if (known != fields.size()) throw std::invalid_argument("sdmlp_seed: a field is not one of SdmlpSeed");
  char bytes[sizeof(seed)];
  std::memcpy(bytes, &seed, sizeof(seed));
  return py::bytes(bytes, sizeof(seed));
}

void sdmlp_step(bool train, int64_t neurons, int64_t inputs, int64_t classes, int64_t k, int64_t batch,
                double gaba_switch, float lr, float momentum, float max_grad_norm, double alpha, double lam,
                double temperature, bool reverse_kl, bool aligned, Address seeds, int64_t count, int device,
                Address stream) {
  cuda::SdmlpStep p = {};
  p.neurons = neurons;
  p.inputs = inputs;
  p.classes = classes;
  p.k = k;
  p.batch = batch;
  p.gaba_switch = gaba_switch;
  p.lr = lr;
  p.momentum = momentum;
  p.max_grad_norm = max_grad_norm;
  p.alpha = alpha;
  p.lam = lam;
  p.temperature = temperature;
  p.reverse_kl = reverse_kl;
  p.aligned = aligned;
  p.seeds = on_device<const cuda::SdmlpSeed>(seeds);
  p.count = count;
  p.device = device;
  p.stream = on_device<void>(stream);
  check_launch(train ? cuda::sdmlp_step(p) : cuda::sdmlp_infer(p));
}

}  // namespace

void bind_cuda_engine(py::module_& m) {
  using py::arg;
  m.attr("MOST_SDMLP_BATCH") = static_cast<int64_t>(cuda::kMostSdmlpBatch);
  m.def("sdmlp_blocks", &sdmlp_blocks, py::kw_only(), arg("neurons"), arg("device"));
  m.def("sdmlp_seed", &sdmlp_seed, py::pos_only(), arg("fields"));
  m.def("sdmlp_step", &sdmlp_step, py::kw_only(), arg("train"), arg("neurons"), arg("inputs"), arg("classes"), arg("k"),
        arg("batch"), arg("gaba_switch"), arg("lr"), arg("momentum"), arg("max_grad_norm"), arg("alpha"), arg("lam"),
        arg("temperature"), arg("reverse_kl"), arg("aligned"), arg("seeds"), arg("count"), arg("device"), arg("stream"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace ssd::bindings
