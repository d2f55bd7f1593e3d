// A list of active entries that grows.
#pragma once

#include <cstdlib>

#include "simd/simd.h"
#include "ssd/active_rows.h"

namespace ssd::cpu::SSD_LEVEL {

// Room for `more` further entries.
template <class S>
bool reserve(ActiveRows::List* list, int64_t more) {
  if (list->count + more <= list->capacity) return true;
  const int64_t doubled = list->capacity * 2, least = list->count + more;
  const size_t capacity = static_cast<size_t>(doubled < least ? least : doubled);
  void* const values = std::realloc(list->values, capacity * sizeof(S));  // large blocks move without a copy
  if (!values) return false;
  list->values = values;
  void* const indices = std::realloc(list->indices, capacity * sizeof(int32_t));
  if (!indices) return false;
  list->indices = static_cast<int32_t*>(indices);
  list->capacity = static_cast<int64_t>(capacity);
  return true;
}

}  // namespace ssd::cpu::SSD_LEVEL
