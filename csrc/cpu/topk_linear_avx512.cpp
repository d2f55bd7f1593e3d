#define SSD_LEVEL avx512
#include "topk_linear.inl"
#include "topk_linear_backward.h"
