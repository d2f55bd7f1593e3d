#define SSD_LEVEL avx512
#include "gaba_linear.inl"
#include "gaba_linear_backward.h"
