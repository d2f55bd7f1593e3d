#define SSD_LEVEL avx2
#include "activation_counts.inl"
