// What device code may ask of its machine: one function per primitive, PTX under nvcc, and under a C++ compiler the
// model of device_model.h, in which every CUDA thread is a fiber. Kernels use these and no asm of their own, so that
// one source is both the kernel and its test; tests/cpp/cuda/README.md says what the model checks.
//
// Ordering is part of each contract. block_sync, named_sync, warp_sync and grid_sync order memory among those who
// meet; shuffles, ballots, match and mma order nothing; relaxed atomics order nothing; load_acquire, store_release and
// add_acq_rel are what their names say, at the scope of the device.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#define SSD_DEVICE __device__ __forceinline__
#define SSD_KERNEL __global__
#ifdef SSD_MOST_REGISTERS  // the negative control of tests/ops/test_cuda_cubins.py: so few that kernels must spill
#define SSD_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, 65536 / (threads * SSD_MOST_REGISTERS))
#else
#define SSD_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#endif
#define SSD_UNROLL _Pragma("unroll")

namespace ssd::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// The block's dynamic shared memory, as one struct. The only place that declares shared memory.
template <class T>
SSD_DEVICE T& shared_memory() {
  extern __shared__ __align__(128) unsigned char ssd_shared_bytes[];
  return *reinterpret_cast<T*>(ssd_shared_bytes);
}

// ---- Rendezvous.
SSD_DEVICE void block_sync() { __syncthreads(); }
SSD_DEVICE int block_count(bool flag) { return __syncthreads_count(flag); }
// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
SSD_DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
SSD_DEVICE void warp_sync(unsigned lanes = kAllLanes) { __syncwarp(lanes); }
// All threads of a cooperative launch.
SSD_DEVICE void grid_sync() { cooperative_groups::this_grid().sync(); }

// ---- Exchange within a warp.
template <class T>
SSD_DEVICE T shuffle(T value, int lane, unsigned lanes = kAllLanes) {
  return __shfl_sync(lanes, value, lane);
}
template <class T>
SSD_DEVICE T shuffle_xor(T value, int mask, unsigned lanes = kAllLanes) {
  return __shfl_xor_sync(lanes, value, mask);
}
// Lane l gets the value of lane l - delta; the first delta lanes keep their own.
template <class T>
SSD_DEVICE T shuffle_up(T value, int delta, unsigned lanes = kAllLanes) {
  return __shfl_up_sync(lanes, value, delta);
}
SSD_DEVICE unsigned ballot(bool flag, unsigned lanes = kAllLanes) { return __ballot_sync(lanes, flag); }
SSD_DEVICE unsigned match_any(unsigned value, unsigned lanes = kAllLanes) { return __match_any_sync(lanes, value); }
SSD_DEVICE unsigned reduce_add(unsigned value, unsigned lanes = kAllLanes) { return __reduce_add_sync(lanes, value); }
SSD_DEVICE unsigned reduce_max(unsigned value, unsigned lanes = kAllLanes) { return __reduce_max_sync(lanes, value); }
SSD_DEVICE unsigned reduce_min(unsigned value, unsigned lanes = kAllLanes) { return __reduce_min_sync(lanes, value); }

// ---- Integer atomics, relaxed; they return the old value. (Float atomics would make sums depend on order.)
template <class T>
SSD_DEVICE T atomic_add(T* p, T value) {
  return atomicAdd(p, value);
}
template <class T>
SSD_DEVICE T atomic_max(T* p, T value) {
  return atomicMax(p, value);
}
template <class T>
SSD_DEVICE T atomic_min(T* p, T value) {
  return atomicMin(p, value);
}
template <class T>
SSD_DEVICE T atomic_or(T* p, T value) {
  return atomicOr(p, value);
}
template <class T>
SSD_DEVICE T atomic_exchange(T* p, T value) {
  return atomicExch(p, value);
}
SSD_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
SSD_DEVICE void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
SSD_DEVICE unsigned add_acq_rel(unsigned* p, unsigned value) {
  unsigned old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}

// ---- Asynchronous copies of 16 bytes from global to shared memory; both addresses are multiples of 16. The bytes
// are there after copy_wait, for the thread that asked; for the others after a barrier beyond it.
// Where `valid` is false zeros are written and `from` is not read.
SSD_DEVICE void copy_async16(void* to, const void* from, bool valid = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(valid ? 16 : 0)
      : "memory");
}
SSD_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the latest groups are under way.
template <int kPending>
SSD_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Tensor cores: d (16 x 8) += a (16 x k) b (k x 8), fragments as PTX lays them out: with g = lane / 4 and
// t = lane % 4, d[i] is row g + 8 (i / 2), column 2 t + i % 2. Operands are packed pairs of 16 bits, or tf32.
SSD_DEVICE void mma_bf16_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SSD_DEVICE void mma_half_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SSD_DEVICE void mma_tf32_k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Bits.
SSD_DEVICE int count_ones(unsigned bits) { return __popc(bits); }
SSD_DEVICE int leading_zeros(unsigned bits) { return __clz(static_cast<int>(bits)); }
SSD_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
SSD_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
SSD_DEVICE double bits_double(uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }
SSD_DEVICE uint64_t double_bits(double value) { return static_cast<uint64_t>(__double_as_longlong(value)); }

SSD_DEVICE float half_value(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
// bf16 of both, to nearest even: `low` in the low half.
SSD_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SSD_DEVICE uint16_t half_bits(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// ---- Host side: what a launcher does. Errors are messages, nullptr is success.
inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// The static runtime has a current device of its own, apart from the caller's framework.
inline const char* use_device(int device) { return message(cudaSetDevice(device)); }

inline const char* multiprocessors(int device, int* count) {
  return message(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device));
}

template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream, A... arguments) {
  if (shared_bytes > 48 * 1024) {
    const int bytes = static_cast<int>(shared_bytes);
    if (const char* error = message(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))
      return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return message(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

// All blocks run at once, for kernels that call grid_sync.
template <class... P, class... A>
const char* launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                               A... arguments) {
  if (shared_bytes > 48 * 1024) {
    const int bytes = static_cast<int>(shared_bytes);
    if (const char* error = message(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))
      return error;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return message(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

}  // namespace ssd::cuda

#else

#include "device_model.h"

#endif

namespace ssd::cuda {

using uint128_t = unsigned __int128;

// A fixed array; under the model every index is checked.
template <class T, int kSize>
struct Array {
  T data[kSize];
#ifdef __CUDACC__
  SSD_DEVICE T& operator[](int i) { return data[i]; }
  SSD_DEVICE const T& operator[](int i) const { return data[i]; }
#else
  T& operator[](int i) { return data[model::inside(i, kSize)]; }
  const T& operator[](int i) const { return data[model::inside(i, kSize)]; }
#endif
};

}  // namespace ssd::cuda
