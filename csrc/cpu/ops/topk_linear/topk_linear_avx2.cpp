#define SSD_LEVEL avx2
#include "ops/topk_linear/topk_linear.inl"
#include "ops/topk_linear/topk_linear_backward.h"
