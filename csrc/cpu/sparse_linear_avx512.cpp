#define SSD_LEVEL avx512
#include "sparse_linear.inl"
