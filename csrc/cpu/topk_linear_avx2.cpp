#define SSD_LEVEL avx2
#include "topk_linear.inl"
#include "topk_linear_backward.h"
