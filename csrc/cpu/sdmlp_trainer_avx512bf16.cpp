#define SSD_LEVEL avx512bf16
#include "sdmlp_trainer.inl"
