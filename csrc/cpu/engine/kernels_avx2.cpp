#define SSD_LEVEL avx2
#include "engine/kernels.inl"
