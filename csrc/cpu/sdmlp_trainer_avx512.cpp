#define SSD_LEVEL avx512
#include "sdmlp_trainer.inl"
