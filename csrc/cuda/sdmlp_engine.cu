#include "sdmlp_sample.cuh"
#include "sdmlp_scan.cuh"
#include "sdmlp_update.cuh"

namespace ssd::cuda {
namespace {

constexpr size_t kLeastShared = 163 * 1024;  // what an sm_80 block may have
static_assert(sizeof(BitsShared<64>) <= kLeastShared / 2, "two blocks of the scan share a multiprocessor");
static_assert(sizeof(SampleShared) <= kLeastShared / 4);
static_assert(sizeof(GradientShared) + kMostBlockWords * kMostSdmlpBatch * sizeof(uint32_t) <= kLeastShared);

int64_t words_of(int64_t neurons) { return (neurons + 31) / 32; }

// Words of 32 neurons that a block of the gradients owns: two blocks a multiprocessor where that gives each a word.
const char* block_words(int64_t neurons, int device, int* count) {
  int processors;
  if (const char* error = multiprocessors(device, &processors)) return error;
  const int64_t even = words_of(neurons) / (2 * processors);
  *count = static_cast<int>(even < 1 ? 1 : even > kMostBlockWords ? kMostBlockWords : even);
  return nullptr;
}

const char* refusal(const SdmlpStep& p) {
  if (p.k < 1 || p.k >= p.neurons) return "sdmlp_engine: K must be from 1 to R - 1";
  if (p.neurons > 0x7fffffff || p.inputs < 1 || p.classes < 1)
    return "sdmlp_engine: R must be below 2^31, D and C not 0";
  if (p.batch < 1 || p.batch > kMostSdmlpBatch) return "sdmlp_engine: B must be from 1 to 4096";
  if (p.count < 1 || p.count > 0xffff) return "sdmlp_engine: seeds must be from 1 to 65535";
  return nullptr;
}

template <int kRows, bool kWide>
const char* scan(const SdmlpStep& p, int processors) {
  const int64_t blocks = (p.batch + kRows - 1) / kRows, tiles = (p.neurons + kBitsNeurons - 1) / kBitsNeurons;
  const int64_t wanted = (2 * processors + blocks * p.count - 1) / (blocks * p.count);
  const int64_t each = (tiles + wanted - 1) / wanted, parts = (tiles + each - 1) / each;
  if (parts > 0xffff) return "sdmlp_engine: more parts than one grid covers";
  // Samples have norm 1 within 1e-4, and rows of W within 1e-3.
  const float spread = 1.01f * preselection_slack(p.inputs, 3);
  return launch(sdmlp_scan_kernel<kRows, kWide>,
                dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts), static_cast<unsigned>(p.count)),
                dim3(kBitsThreads), sizeof(BitsShared<kRows>), p.stream, p, each * kBitsNeurons, words_of(p.neurons),
                spread);
}

// The scan, and then what a block a sample does.
template <bool kTrain>
const char* forward(const SdmlpStep& p) {
  int processors;
  if (const char* error = multiprocessors(p.device, &processors)) return error;
  const bool wide = p.inputs % 4 == 0 && p.aligned;
  const char* error;
  if (!wide) {  // one form is enough where each number is copied by itself
    error = scan<32, false>(p, processors);
  } else {
    error = p.batch > 32 ? scan<64, true>(p, processors) : scan<32, true>(p, processors);
  }
  if (error) return error;
  return launch(sdmlp_sample_kernel<kTrain>, dim3(static_cast<unsigned>(p.batch), 1, static_cast<unsigned>(p.count)),
                dim3(kBlockThreads), sizeof(SampleShared), p.stream, p, words_of(p.neurons));
}

dim3 grid(int64_t items, int64_t per_block, int64_t seeds) {
  return dim3(static_cast<unsigned>((items + per_block - 1) / per_block), 1, static_cast<unsigned>(seeds));
}

}  // namespace

const char* sdmlp_blocks(int64_t neurons, int device, int64_t* blocks) {
  int each;
  if (const char* error = block_words(neurons, device, &each)) return error;
  *blocks = (words_of(neurons) + each - 1) / each;
  return nullptr;
}

const char* sdmlp_step(const SdmlpStep& p) {
  if (const char* error = refusal(p)) return error;
  if (const char* error = use_device(p.device)) return error;
  if (const char* error = forward<true>(p)) return error;
  int each;
  if (const char* error = block_words(p.neurons, p.device, &each)) return error;
  const size_t bytes =
      sizeof(GradientShared) + static_cast<size_t>(p.batch) * static_cast<size_t>(each) * sizeof(uint32_t);
  if (const char* error = launch(sdmlp_gradient_kernel, grid(words_of(p.neurons), each, p.count), dim3(kBlockThreads),
                                 bytes, p.stream, p, words_of(p.neurons), each))
    return error;
  return launch(sdmlp_update_kernel, grid(p.neurons, kBlockWarps, p.count), dim3(kBlockThreads), 0, p.stream, p);
}

const char* sdmlp_infer(const SdmlpStep& p) {
  if (const char* error = refusal(p)) return error;
  if (const char* error = use_device(p.device)) return error;
  if (const char* error = forward<false>(p)) return error;
  if (const char* error = launch(sdmlp_frequency_kernel, grid(p.neurons, kBlockThreads, p.count), dim3(kBlockThreads),
                                 0, p.stream, p, words_of(p.neurons)))
    return error;
  return launch(sdmlp_advance_kernel, dim3(1, 1, static_cast<unsigned>(p.count)), dim3(32), 0, p.stream, p);
}

}  // namespace ssd::cuda
