#define SSD_LEVEL generic
#include "sparse_update.inl"
