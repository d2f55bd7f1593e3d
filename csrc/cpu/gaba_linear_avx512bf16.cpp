#define SSD_LEVEL avx512bf16
#include "gaba_linear.inl"
