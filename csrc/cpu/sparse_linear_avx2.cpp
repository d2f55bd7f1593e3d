#define SSD_LEVEL avx2
#include "sparse_linear.inl"
