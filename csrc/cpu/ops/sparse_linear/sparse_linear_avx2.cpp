#define SSD_LEVEL avx2
#include "ops/sparse_linear/sparse_linear.inl"
