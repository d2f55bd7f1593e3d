#define SSD_LEVEL generic
#include "ops/distill/distill.inl"
