#define SSD_LEVEL generic
#include "sdmlp_trainer.inl"
