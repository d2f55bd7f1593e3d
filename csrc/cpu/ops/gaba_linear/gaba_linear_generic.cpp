#define SSD_LEVEL generic
#include "ops/gaba_linear/gaba_linear.inl"
#include "ops/gaba_linear/gaba_linear_backward.h"
