// Selection from scores, and the fused forward of topk_linear.
#include "cuda.h"
#include "ssd/threshold_select_cuda.h"
#include "ssd/topk_linear_cuda.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

void threshold_select(int score_dtype, int dtype, int64_t batch, int64_t neurons, int64_t k, Address scores,
                      int64_t row_stride, int64_t column_stride, Address x_scale, Address weight_scale, Address bias,
                      bool relu, bool inhibition, Address values, Address indices, Address threshold, int device,
                      Address stream) {
  cuda::ThresholdSelectParams p = {};
  p.score_dtype = dtype_of(score_dtype);
  p.dtype = dtype_of(dtype);
  p.batch = batch;
  p.neurons = neurons;
  p.k = k;
  p.scores = on_device<const void>(scores);
  p.row_stride = row_stride;
  p.column_stride = column_stride;
  p.epilogue = {on_device<const void>(x_scale), on_device<const void>(weight_scale), on_device<const void>(bias), relu};
  p.inhibition = inhibition;
  p.values = on_device<void>(values);
  p.indices = on_device<int32_t>(indices);
  p.threshold = on_device<void>(threshold);
  p.device = device;
  p.stream = on_device<void>(stream);
  check_launch(cuda::threshold_select(p));
}

int64_t topk_linear_parts(int64_t batch, int64_t neurons, int64_t k, int device) {
  int64_t parts;
  check_launch(cuda::topk_linear_parts(batch, neurons, k, device, &parts));
  return parts;
}

void topk_linear(int dtype, int64_t batch, int64_t inputs, int64_t neurons, int64_t k, Address x, int64_t x_stride,
                 Address weight, int64_t weight_stride, Address bias, Address x_scale, Address weight_scale,
                 Address x_norms, Address weight_norm_most, bool relu, bool inhibition, int64_t parts, Address lists,
                 Address values, Address indices, Address threshold, int device, Address stream) {
  cuda::TopkLinearParams p = {};
  p.dtype = dtype_of(dtype);
  p.batch = batch;
  p.inputs = inputs;
  p.neurons = neurons;
  p.k = k;
  p.x = on_device<const void>(x);
  p.x_stride = x_stride;
  p.weight = on_device<const void>(weight);
  p.weight_stride = weight_stride;
  p.bias = on_device<const void>(bias);
  p.x_scale = on_device<const float>(x_scale);
  p.weight_scale = on_device<const float>(weight_scale);
  p.x_norms = on_device<const float>(x_norms);
  p.weight_norm_most = on_device<const float>(weight_norm_most);
  p.relu = relu;
  p.inhibition = inhibition;
  p.parts = parts;
  p.lists = on_device<uint64_t>(lists);
  p.values = on_device<void>(values);
  p.indices = on_device<int32_t>(indices);
  p.threshold = on_device<void>(threshold);
  p.device = device;
  p.stream = on_device<void>(stream);
  check_launch(cuda::topk_linear(p));
}

}  // namespace

void bind_cuda_select(py::module_& m) {
  using py::arg;
  m.def("threshold_select", &threshold_select, py::kw_only(), arg("score_dtype"), arg("dtype"), arg("batch"),
        arg("neurons"), arg("k"), arg("scores"), arg("row_stride"), arg("column_stride"), arg("x_scale"),
        arg("weight_scale"), arg("bias"), arg("relu"), arg("inhibition"), arg("values"), arg("indices"),
        arg("threshold"), arg("device"), arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def("topk_linear_parts", &topk_linear_parts, py::kw_only(), arg("batch"), arg("neurons"), arg("k"), arg("device"));
  m.def("topk_linear", &topk_linear, py::kw_only(), arg("dtype"), arg("batch"), arg("inputs"), arg("neurons"), arg("k"),
        arg("x"), arg("x_stride"), arg("weight"), arg("weight_stride"), arg("bias"), arg("x_scale"),
        arg("weight_scale"), arg("x_norms"), arg("weight_norm_most"), arg("relu"), arg("inhibition"), arg("parts"),
        arg("lists"), arg("values"), arg("indices"), arg("threshold"), arg("device"), arg("stream"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace ssd::bindings
