#define SSD_LEVEL avx512
#include "ops/activation_counts/activation_counts.inl"
