#define SSD_LEVEL generic
#include "ops/activation_counts/activation_counts.inl"
