#define SSD_LEVEL avx512
#include "sparse_update.inl"
