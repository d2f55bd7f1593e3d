#define SSD_LEVEL avx512
#include "ops/relu_fisher/relu_fisher.inl"
