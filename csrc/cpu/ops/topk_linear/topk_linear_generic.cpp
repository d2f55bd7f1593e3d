#define SSD_LEVEL generic
#include "ops/topk_linear/topk_linear.inl"
#include "ops/topk_linear/topk_linear_backward.h"
