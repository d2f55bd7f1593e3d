#define SSD_LEVEL avx512
#include "distill.inl"
