#define SSD_LEVEL generic
#include "engine/kernels.inl"
