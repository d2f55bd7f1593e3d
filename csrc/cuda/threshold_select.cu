#include "threshold_select.cuh"

namespace ssd::cuda {
namespace {

template <class T, class S, class O>
const char* run(const ThresholdSelectParams& p) {
  const int keep = static_cast<int>(p.k < p.neurons ? p.k + 1 : p.neurons);
  // Room for what is kept and two tiles, so that random rows are cut only every few tiles.
  const int capacity = keep + 2 * kSelectTile;
  const bool wide = p.column_stride == 1 && reinterpret_cast<uintptr_t>(p.scores) % 16 == 0 &&
                    p.row_stride * static_cast<int64_t>(sizeof(S)) % 16 == 0;
  const SelectTask<T, S, O> task = {
      p.neurons,
      p.row_stride,
      p.column_stride,
      static_cast<int>(p.k),
      keep,
      capacity,
      wide,
      static_cast<const S*>(p.scores),
      {static_cast<const T*>(p.epilogue.x_scale), static_cast<const T*>(p.epilogue.weight_scale), p.epilogue.relu},
      static_cast<const O*>(p.epilogue.bias),
      p.inhibition,
      static_cast<O*>(p.values),
      p.indices,
      static_cast<O*>(p.threshold)};
  const size_t bytes = sizeof(SelectShared<Key<T>>) + static_cast<size_t>(capacity) * sizeof(Key<T>);
  return launch(threshold_select_kernel<T, S, O>, dim3(static_cast<unsigned>(p.batch)), dim3(kSelectThreads), bytes,
                p.stream, task);
}

// 16-bit outputs come from fp32 scores, or from scores of their own type.
template <class O>
const char* run_narrow(const ThresholdSelectParams& p) {
  if (p.score_dtype == cpu::Dtype::kFloat32) return run<float, float, O>(p);
  return p.score_dtype == p.dtype ? run<float, O, O>(p) : "threshold_select: no such pair of dtypes";
}

}  // namespace

const char* threshold_select(const ThresholdSelectParams& p) {
  if (p.batch == 0) return nullptr;
  if (p.k < 1 || p.k > p.neurons) return "threshold_select: K must be from 1 to R";
  if (p.k > kMostSelected) return "threshold_select: K must be at most 8191";
  if (p.batch > 0x7fffffff || p.neurons > 0x7fffffff) return "threshold_select: B and R must be below 2^31";
  if (const char* error = use_device(p.device)) return error;
  switch (p.dtype) {
    case cpu::Dtype::kFloat32:
      return p.score_dtype == cpu::Dtype::kFloat32 ? run<float, float, float>(p)
                                                   : "threshold_select: no such pair of dtypes";
    case cpu::Dtype::kFloat64:
      return p.score_dtype == cpu::Dtype::kFloat64 ? run<double, double, double>(p)
                                                   : "threshold_select: no such pair of dtypes";
    case cpu::Dtype::kBFloat16:
      return run_narrow<Bf16>(p);
    case cpu::Dtype::kHalf:
      return run_narrow<Half>(p);
  }
  return "threshold_select: no such dtype";
}

}  // namespace ssd::cuda
