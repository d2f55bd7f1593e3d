// What tests say to the emulator of csrc/cuda/device_model.h.
#pragma once

#include <cstdint>

namespace ssd::cuda::emulator {

// The order in which the threads of a launch run between two rendezvous, and its blocks where not all run at once.
enum class Order { kAscending, kDescending, kShuffled };
struct Schedule {
  Order order;
  uint32_t seed;
};
constexpr Schedule kSchedules[] = {
    {Order::kAscending, 1}, {Order::kDescending, 2}, {Order::kShuffled, 3}, {Order::kShuffled, 4}};

// For the launches that follow.
void use(Schedule schedule);

// Kernels launched so far.
long long launches();

}  // namespace ssd::cuda::emulator
