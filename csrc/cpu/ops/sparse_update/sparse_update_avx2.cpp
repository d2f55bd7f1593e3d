#define SSD_LEVEL avx2
#include "ops/sparse_update/sparse_update.inl"
