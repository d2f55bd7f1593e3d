#define SSD_LEVEL avx512
#include "ops/sparse_update/sparse_update.inl"
