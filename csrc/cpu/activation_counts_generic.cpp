#define SSD_LEVEL generic
#include "activation_counts.inl"
