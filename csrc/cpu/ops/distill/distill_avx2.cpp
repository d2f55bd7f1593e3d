#define SSD_LEVEL avx2
#include "ops/distill/distill.inl"
