#define SSD_LEVEL generic
#include "relu_fisher.inl"
