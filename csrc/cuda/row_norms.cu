#include "row_norms.cuh"

namespace ssd::cuda {
namespace {

template <class T>
long long blocks_of(long long rows) {
  return (rows + kRowsEach<T> - 1) / kRowsEach<T>;
}
constexpr const char* kTooMany = "row_norms: more rows than one grid covers";

}  // namespace

const char* row_norms(const RowNormsParams& p) {
  if (p.rows == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    const long long blocks = blocks_of<Acc<S>>(p.rows);
    if (blocks > 0x7fffffffLL) return kTooMany;
    return launch(row_norms_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0, p.stream, p);
  });
}

const char* through_norm(const ThroughNormParams& p) {
  if (p.rows == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    const long long blocks = blocks_of<Acc<S>>(p.rows);
    if (blocks > 0x7fffffffLL) return kTooMany;
    return launch(through_norm_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0, p.stream, p);
  });
}

}  // namespace ssd::cuda
