// The choice of the row kernels.
#include <cstring>
#include <vector>

#include "row_kernels.h"

namespace dlrm_mtl {

const RowKernels* chosen_kernels = &kPortableKernels;

}  // namespace dlrm_mtl

using namespace dlrm_mtl;

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Chooses the instruction set: "portable", "avx2", "avx512", or "" for the best of this processor. Returns what was chosen,
// or null if the processor does not have it.
DLRM_MTL_API const char* dlrm_mtl_select(const char* name) {
  std::vector<const RowKernels*> best_first;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c")) {
    best_first.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) best_first.push_back(&kAvx2Kernels);
#endif
  best_first.push_back(&kPortableKernels);
  for (const RowKernels* candidate : best_first) {
    if (!*name || !std::strcmp(name, candidate->name)) return (chosen_kernels = candidate)->name;
  }
  return nullptr;
}

}  // extern "C"
