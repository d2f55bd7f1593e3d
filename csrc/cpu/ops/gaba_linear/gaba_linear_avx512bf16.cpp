#define SSD_LEVEL avx512bf16
#include "ops/gaba_linear/gaba_linear.inl"
