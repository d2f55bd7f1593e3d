#define SSD_LEVEL avx512
#include "gaba_linear.inl"
