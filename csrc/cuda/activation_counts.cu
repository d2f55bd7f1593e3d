#include "activation_counts.cuh"

namespace ssd::cuda {

const char* activation_counts(const ActivationCountsParams& p) {
  if (p.batch == 0 || p.neurons == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  const long long columns = p.indices ? p.batch : p.neurons, blocks = (columns + kCountThreads - 1) / kCountThreads;
  if (blocks > 0x7fffffff) return "activation_counts: more values than one grid covers";
  const long long slabs = (p.batch + kCountSlab - 1) / kCountSlab;
  const dim3 grid(static_cast<unsigned>(blocks),
                  p.indices ? 1u : static_cast<unsigned>(slabs < 0xffff ? slabs : 0xffff));
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    if (p.indices) return launch(count_entries_kernel<S>, grid, dim3(kCountThreads), 0, p.stream, p);
    return launch(count_columns_kernel<S>, grid, dim3(kCountThreads), 0, p.stream, p);
  });
}

const char* top_n(const TopNParams& p) {
  if (p.n == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  const long long blocks = (p.neurons + kCountThreads - 1) / kCountThreads;
  if (blocks > 0x7fffffff) return "top_n: more neurons than one grid covers";
  return launch(top_n_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kCountThreads), sizeof(TopNShared), p.stream,
                p);
}

}  // namespace ssd::cuda
