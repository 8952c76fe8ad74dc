#define DLRM_MTL_ISA portable
#define DLRM_MTL_KERNELS kPortableKernels
#define DLRM_MTL_NAME "portable"
#include "row_kernels_impl.h"
