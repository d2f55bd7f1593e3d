#define SSD_LEVEL avx512
#include "ops/distill/distill.inl"
