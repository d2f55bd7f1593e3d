#define SSD_LEVEL avx2
#include "sparse_update.inl"
