#define SSD_LEVEL avx512bf16
#include "topk_linear.inl"
#include "topk_linear_backward.h"
