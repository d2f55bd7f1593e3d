// Active entries of a batch, as a kernel finds them: their number is known only at the end.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssd::cpu {

// One list per part of the batch; the lists follow one another. Neurons ascend within a sample.
class ActiveRows {
 public:
  ActiveRows() = default;
  ~ActiveRows();
  ActiveRows(const ActiveRows&) = delete;
  ActiveRows& operator=(const ActiveRows&) = delete;
  int64_t count() const;
  void copy(void* values, int32_t* indices) const;  // (P,) each

  struct List {
    void* values;
    int32_t* indices;
    int64_t count, capacity;
  };
  List* lists = nullptr;
  int parts = 0;
  size_t value_size = 0;
};

}  // namespace ssd::cpu
