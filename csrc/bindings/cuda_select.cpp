// Selection from scores.
#include "cuda.h"
#include "ssd/threshold_select_cuda.h"

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

}  // namespace

void bind_cuda_select(py::module_& m) {
  using py::arg;
  m.def("threshold_select", &threshold_select, py::kw_only(), arg("score_dtype"), arg("dtype"), arg("batch"),
        arg("neurons"), arg("k"), arg("scores"), arg("row_stride"), arg("column_stride"), arg("x_scale"),
        arg("weight_scale"), arg("bias"), arg("relu"), arg("inhibition"), arg("values"), arg("indices"),
        arg("threshold"), arg("device"), arg("stream"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace ssd::bindings
