#define SSD_LEVEL generic
#include "topk_linear.inl"
#include "topk_linear_backward.h"
