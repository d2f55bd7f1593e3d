#define SSD_LEVEL avx512
#include "engine/kernels.inl"
