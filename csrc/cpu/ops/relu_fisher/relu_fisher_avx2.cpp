#define SSD_LEVEL avx2
#include "ops/relu_fisher/relu_fisher.inl"
