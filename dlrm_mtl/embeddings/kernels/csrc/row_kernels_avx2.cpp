#if defined(__x86_64__)

#include <immintrin.h>

#define DLRM_MTL_ISA avx2
#define DLRM_MTL_KERNELS kAvx2Kernels
#define DLRM_MTL_NAME "avx2"
#include "row_kernels_impl.h"

#endif
