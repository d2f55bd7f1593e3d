#define SSD_LEVEL avx512bf16
#include "ops/topk_linear/topk_linear.inl"
#include "ops/topk_linear/topk_linear_backward.h"
