#define SSD_LEVEL generic
#include "ops/sparse_update/sparse_update.inl"
