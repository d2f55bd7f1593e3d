#define SSD_LEVEL avx512
#include "ops/sparse_linear/sparse_linear.inl"
