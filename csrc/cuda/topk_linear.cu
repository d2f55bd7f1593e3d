#include "topk_linear.cuh"

namespace ssd::cuda {
namespace {

constexpr int64_t kMostParts = 64;

// Lists of more winners leave room for fewer samples.
int rows_of(int64_t batch, int64_t k) { return k < 32 && batch > 32 ? 64 : 32; }

// What an sm_80 block may have, at the most winners of each form.
constexpr int kLeastShared = 163 * 1024;
static_assert(sizeof(ScanShared<float, 64>) + 64 * (32 + 32 + kScanNeurons) * sizeof(uint64_t) <= kLeastShared);
static_assert(sizeof(ScanShared<float, 32>) + 32 * (kMostFusedWinners + 1 + 32 + kScanNeurons) * sizeof(uint64_t) <=
              kLeastShared);

int64_t keep_of(int64_t neurons, int64_t k) { return k < neurons ? k + 1 : neurons; }

template <class S, int kRows, bool kWide>
const char* scan(const TopkLinearParams& p, const ScanTask<S>& task) {
  const size_t bytes =
      sizeof(ScanShared<S, kRows>) + static_cast<size_t>(kRows) * static_cast<size_t>(task.capacity) * sizeof(uint64_t);
  const long long blocks = (p.batch + kRows - 1) / kRows;
  return launch(topk_scan_kernel<S, kRows, kWide>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.parts)),
                dim3(kScanThreads), bytes, p.stream, task);
}

template <class S>
const char* run(const TopkLinearParams& p) {
  const int keep = static_cast<int>(keep_of(p.neurons, p.k));
  const long long tiles = (p.neurons + kScanNeurons - 1) / kScanNeurons;
  const long long part = (tiles + p.parts - 1) / p.parts * kScanNeurons;
  if ((p.parts - 1) * part >= p.neurons) return "topk_linear: parts are not those of topk_linear_parts";
  ScanTask<S> task = {};
  task.batch = p.batch;
  task.inputs = p.inputs;
  task.neurons = p.neurons;
  task.x_stride = p.x_stride;
  task.weight_stride = p.weight_stride;
  task.part_neurons = part;
  task.keep = keep;
  task.capacity = keep + 32 + kScanNeurons;  // what a cut leaves, ties within the bound, and a tile
  task.parts = static_cast<int>(p.parts);
  task.x = static_cast<const S*>(p.x);
  task.weight = static_cast<const S*>(p.weight);
  task.bias = static_cast<const S*>(p.bias);
  task.x_scale = p.x_scale;
  task.weight_scale = p.weight_scale;
  task.x_norms = p.x_norms;
  task.weight_norm_most = p.weight_norm_most;
  task.slack = preselection_slack(p.inputs, sizeof(S) == 4 ? 3 : 1);
  task.relu = p.relu;
  task.lists = p.lists;
  const auto aligned = [](const void* base, int64_t stride) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * static_cast<int64_t>(sizeof(S)) % 16 == 0;
  };
  const bool wide = aligned(p.x, p.x_stride) && aligned(p.weight, p.weight_stride) && aligned(nullptr, p.inputs);
  const char* error;
  if (!wide) {  // one form is enough where each number is copied by itself
    error = scan<S, 32, false>(p, task);
  } else {
    error = rows_of(p.batch, p.k) == 64 ? scan<S, 64, true>(p, task) : scan<S, 32, true>(p, task);
  }
  if (error) return error;
  const MergeTask<S> merge = {task.parts,
                              keep,
                              static_cast<int>(p.k),
                              p.inhibition,
                              p.lists,
                              static_cast<S*>(p.values),
                              p.indices,
                              static_cast<S*>(p.threshold)};
  const size_t bytes =
      sizeof(SelectShared<uint64_t>) + static_cast<size_t>(merge.parts) * static_cast<size_t>(keep) * sizeof(uint64_t);
  return launch(topk_merge_kernel<S>, dim3(static_cast<unsigned>(p.batch)), dim3(kMergeThreads), bytes, p.stream,
                merge);
}

}  // namespace

const char* topk_linear_parts(int64_t batch, int64_t neurons, int64_t k, int device, int64_t* parts) {
  int processors;
  if (const char* error = multiprocessors(device, &processors)) return error;
  const int64_t rows = rows_of(batch, k), blocks = (batch + rows - 1) / rows;
  const int64_t tiles = (neurons + kScanNeurons - 1) / kScanNeurons;
  int64_t wanted = blocks ? (processors + blocks - 1) / blocks : 1;
  if (wanted > kMostParts) wanted = kMostParts;
  if (wanted > tiles) wanted = tiles;
  const int64_t each = (tiles + wanted - 1) / wanted;
  *parts = (tiles + each - 1) / each;  // none of them empty
  return nullptr;
}

const char* topk_linear(const TopkLinearParams& p) {
  if (p.batch == 0) return nullptr;
  if (p.k < 1 || p.k > p.neurons) return "topk_linear: K must be from 1 to R";
  if (p.k > kMostFusedWinners) return "topk_linear: K must be at most 127 in the fused form";
  if (p.batch > 0x7fffffff || p.neurons > 0x7fffffff) return "topk_linear: B and R must be below 2^31";
  if (const char* error = use_device(p.device)) return error;
  switch (p.dtype) {
    case cpu::Dtype::kFloat32:
      return run<float>(p);
    case cpu::Dtype::kBFloat16:
      return run<Bf16>(p);
    case cpu::Dtype::kHalf:
      return run<Half>(p);
    default:
      return "topk_linear: the fused form takes fp32, bf16 and fp16";
  }
}

}  // namespace ssd::cuda
