#define SSD_LEVEL avx2
#include "relu_fisher.inl"
