#define SSD_LEVEL avx512
#include "activation_counts.inl"
