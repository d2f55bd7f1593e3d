#define SSD_LEVEL generic
#include "gaba_linear.inl"
