#define SSD_LEVEL generic
#include "gaba_linear.inl"
#include "gaba_linear_backward.h"
