#define SSD_LEVEL avx2
#include "gaba_linear.inl"
#include "gaba_linear_backward.h"
