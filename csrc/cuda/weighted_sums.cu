#include "weighted_sums.cuh"

namespace ssd::cuda {

const char* weighted_sums(const WeightedSumsParams& p) {
  if (p.sums == 0 || p.columns == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  const unsigned wide = p.columns <= 32 ? 32 : kSumThreads, many = kSumThreads / wide;
  const long long blocks = (p.sums + many - 1) / many, stripes = (p.columns + wide - 1) / wide;
  if (blocks > 0x7fffffff || stripes > 0xffff) return "weighted_sums: more sums or columns than one grid covers";
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(stripes)), block(wide, many);
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    if (p.wide_out) return launch(weighted_sums_kernel<S, Acc<S>>, grid, block, 0, p.stream, p);
    return launch(weighted_sums_kernel<S, S>, grid, block, 0, p.stream, p);
  });
}

}  // namespace ssd::cuda
