#define SSD_LEVEL avx2
#include "sdmlp_trainer.inl"
