#define SSD_LEVEL avx512
#include "relu_fisher.inl"
