#define SSD_LEVEL avx512
#include "ops/gaba_linear/gaba_linear.inl"
#include "ops/gaba_linear/gaba_linear_backward.h"
