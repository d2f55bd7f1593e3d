#define SSD_LEVEL avx2
#include "ops/activation_counts/activation_counts.inl"
