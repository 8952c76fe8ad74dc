#if defined(__x86_64__)

#include <immintrin.h>

#define DLRM_MTL_ISA avx512
#define DLRM_MTL_KERNELS kAvx512Kernels
#define DLRM_MTL_NAME "avx512"
#include "row_kernels_impl.h"

#endif
