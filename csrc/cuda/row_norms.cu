#include "row_norms.cuh"
#include "ssd/row_norms_cuda.h"

namespace ssd::cuda {

const char* row_norms(const RowNormsParams& p) {
  if (p.rows == 0) return nullptr;
  if (const char* error = use_device(p.device)) return error;
  const long long blocks = (p.rows + kRowNormsRows - 1) / kRowNormsRows;
  if (blocks > 0x7fffffffLL) return "row_norms: more rows than one grid covers";
  return launch(row_norms_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kRowNormsThreads), 0, p.stream, p.x, p.rows,
                p.cols, p.stride, p.norms);
}

}  // namespace ssd::cuda
