#define SSD_LEVEL generic
#include "sparse_linear.inl"
