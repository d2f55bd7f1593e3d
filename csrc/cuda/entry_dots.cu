#include "entry_dots.cuh"

namespace ssd::cuda {

const char* entry_dots(const EntryDotsParams& p) {
  if (p.entries == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  return with_dtype(static_cast<int>(p.dtype), [&](auto storage) {
    using S = decltype(storage);
    constexpr int kEach = kDotThreads / kDotLanes<Acc<S>>;
    const long long blocks = (p.entries + kEach - 1) / kEach;
    if (blocks > 0x7fffffff) return "entry_dots: more entries than one grid covers";
    return launch(entry_dots_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(kDotThreads), 0, p.stream, p);
  });
}

}  // namespace ssd::cuda
