// Norms, weighted sums and updates of rows, counts of entries.
#include "cuda.h"
#include "ssd/activation_counts_cuda.h"
#include "ssd/entry_dots_cuda.h"
#include "ssd/row_norms_cuda.h"
#include "ssd/sparse_update_cuda.h"
#include "ssd/weighted_sums_cuda.h"

namespace py = pybind11;

namespace ssd::bindings {
namespace {

void row_norms(int dtype, Address x, long long rows, long long cols, long long stride, bool inverse, Address norms,
               int device, Address stream) {
  check_launch(cuda::row_norms({dtype_of(dtype), on_device<const void>(x), rows, cols, stride, inverse,
                                on_device<void>(norms), device, on_device<void>(stream)}));
}

void through_norm(int dtype, long long rows, long long cols, Address sum, Address x, long long stride, Address numbers,
                  Address inverse, Address out, int device, Address stream) {
  check_launch(cuda::through_norm({dtype_of(dtype), rows, cols, on_device<const void>(sum), on_device<const void>(x),
                                   stride, on_device<const int64_t>(numbers), on_device<const void>(inverse),
                                   on_device<void>(out), device, on_device<void>(stream)}));
}

void weighted_sums(int dtype, bool wide_out, int64_t sums, int64_t columns, Address starts, int64_t per_sum,
                   Address order, Address factors, Address mask, Address indices, Address samples, int64_t per_row,
                   Address row_scale, Address rows, int64_t row_stride, int64_t column_stride, Address places,
                   Address out, int64_t out_row_stride, int64_t out_column_stride, int device, Address stream) {
  cuda::WeightedSumsParams p = {};
  p.dtype = dtype_of(dtype);
  p.wide_out = wide_out;
  p.sums = sums;
  p.columns = columns;
  p.starts = on_device<const int64_t>(starts);
  p.per_sum = per_sum;
  p.order = on_device<const int64_t>(order);
  p.factors = on_device<const void>(factors);
  p.mask = on_device<const void>(mask);
  p.indices = on_device<const int32_t>(indices);
  p.samples = on_device<const int64_t>(samples);
  p.per_row = per_row;
  p.row_scale = on_device<const void>(row_scale);
  p.rows = on_device<const void>(rows);
  p.row_stride = row_stride;
  p.column_stride = column_stride;
  p.places = on_device<const int64_t>(places);
  p.out = on_device<void>(out);
  p.out_row_stride = out_row_stride;
  p.out_column_stride = out_column_stride;
  p.device = device;
  p.stream = on_device<void>(stream);
  check_launch(cuda::weighted_sums(p));
}

void entry_dots(int dtype, int64_t entries, int64_t outputs, Address grad, int64_t grad_stride, Address indices,
                Address samples, int64_t per_sample, Address weight, int64_t output_stride, int64_t neuron_stride,
                Address out, int device, Address stream) {
  check_launch(cuda::entry_dots({dtype_of(dtype), entries, outputs, on_device<const void>(grad), grad_stride,
                                 on_device<const int32_t>(indices), on_device<const int64_t>(samples), per_sample,
                                 on_device<const void>(weight), output_stride, neuron_stride, on_device<void>(out),
                                 device, on_device<void>(stream)}));
}

void sparse_update(int dtype, int64_t inputs, int64_t rows, Address weight, int64_t weight_stride, Address indices,
                   Address grad, int64_t grad_stride, double step, Address factor, bool clamp, bool renormalise,
                   Address movement, int device, Address stream) {
  check_launch(cuda::sparse_update({dtype_of(dtype), inputs, rows, on_device<void>(weight), weight_stride,
                                    on_device<const int64_t>(indices), on_device<const void>(grad), grad_stride, step,
                                    on_device<const double>(factor), clamp, renormalise, on_device<double>(movement),
                                    device, on_device<void>(stream)}));
}

void activation_counts(int dtype, int64_t batch, int64_t neurons, Address values, int64_t row_stride,
                       int64_t column_stride, Address indices, Address counts, int device, Address stream) {
  check_launch(cuda::activation_counts({dtype_of(dtype), batch, neurons, on_device<const void>(values), row_stride,
                                        column_stride, on_device<const int32_t>(indices), on_device<int64_t>(counts),
                                        device, on_device<void>(stream)}));
}

void top_n(int64_t neurons, int64_t n, Address counts, int64_t stride, Address selected, int device, Address stream) {
  check_launch(cuda::top_n({neurons, n, on_device<const int64_t>(counts), stride, on_device<int64_t>(selected), device,
                            on_device<void>(stream)}));
}

}  // namespace

void bind_cuda_rows(py::module_& m) {
  using py::arg;
  const py::call_guard<py::gil_scoped_release> released;
  m.def("row_norms", &row_norms, py::kw_only(), arg("dtype"), arg("x"), arg("rows"), arg("cols"), arg("stride"),
        arg("inverse"), arg("norms"), arg("device"), arg("stream"), released);
  m.def("through_norm", &through_norm, py::kw_only(), arg("dtype"), arg("rows"), arg("cols"), arg("sum"), arg("x"),
        arg("stride"), arg("numbers"), arg("inverse"), arg("out"), arg("device"), arg("stream"), released);
  m.def("weighted_sums", &weighted_sums, py::kw_only(), arg("dtype"), arg("wide_out"), arg("sums"), arg("columns"),
        arg("starts"), arg("per_sum"), arg("order"), arg("factors"), arg("mask"), arg("indices"), arg("samples"),
        arg("per_row"), arg("row_scale"), arg("rows"), arg("row_stride"), arg("column_stride"), arg("places"),
        arg("out"), arg("out_row_stride"), arg("out_column_stride"), arg("device"), arg("stream"), released);
  m.def("entry_dots", &entry_dots, py::kw_only(), arg("dtype"), arg("entries"), arg("outputs"), arg("grad"),
        arg("grad_stride"), arg("indices"), arg("samples"), arg("per_sample"), arg("weight"), arg("output_stride"),
        arg("neuron_stride"), arg("out"), arg("device"), arg("stream"), released);
  m.def("sparse_update", &sparse_update, py::kw_only(), arg("dtype"), arg("inputs"), arg("rows"), arg("weight"),
        arg("weight_stride"), arg("indices"), arg("grad"), arg("grad_stride"), arg("step"), arg("factor"), arg("clamp"),
        arg("renormalise"), arg("movement"), arg("device"), arg("stream"), released);
  m.def("activation_counts", &activation_counts, py::kw_only(), arg("dtype"), arg("batch"), arg("neurons"),
        arg("values"), arg("row_stride"), arg("column_stride"), arg("indices"), arg("counts"), arg("device"),
        arg("stream"), released);
  m.def("top_n", &top_n, py::kw_only(), arg("neurons"), arg("n"), arg("counts"), arg("stride"), arg("selected"),
        arg("device"), arg("stream"), released);
}

}  // namespace ssd::bindings
