// Where PyTorch's arithmetic differs between builds and processors, so that native results have its bits: its square root may
// be that of Intel's MKL, which is not correctly rounded on every processor, and its addcmul may round once.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

struct Arithmetic {
  void (*roots)(int count, const float* from, float* to, int64_t mode);  // MKL's vmsSqrt, or null for the processor's own
  int64_t mode;
  bool fused;  // whether addcmul rounds once
};

extern Arithmetic arithmetic;  // by dlrm_mtl_arithmetic, before anything is computed

}  // namespace dlrm_mtl
