#define SSD_LEVEL generic
#include "ops/relu_fisher/relu_fisher.inl"
