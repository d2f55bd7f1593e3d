#include "sparse_update.cuh"

namespace ssd::cuda {

const char* sparse_update(const SparseUpdateParams& p) {
  if (p.rows == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  const long long blocks = (p.rows + kUpdateRows - 1) / kUpdateRows;
  if (blocks > 0x7fffffff) return "sparse_update: more rows than one grid covers";
  const dim3 grid(static_cast<unsigned>(blocks)), block(kUpdateThreads);
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    if (p.clamp) return launch(sparse_update_kernel<S, true>, grid, block, 0, p.stream, p);
    return launch(sparse_update_kernel<S, false>, grid, block, 0, p.stream, p);
  });
}

}  // namespace ssd::cuda
