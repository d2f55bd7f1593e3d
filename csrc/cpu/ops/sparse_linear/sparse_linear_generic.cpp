#define SSD_LEVEL generic
#include "ops/sparse_linear/sparse_linear.inl"
