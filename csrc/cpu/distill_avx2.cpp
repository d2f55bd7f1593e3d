#define SSD_LEVEL avx2
#include "distill.inl"
