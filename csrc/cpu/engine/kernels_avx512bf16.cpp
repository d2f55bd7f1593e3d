#define SSD_LEVEL avx512bf16
#include "engine/kernels.inl"
