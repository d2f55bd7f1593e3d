#define SSD_LEVEL generic
#include "distill.inl"
