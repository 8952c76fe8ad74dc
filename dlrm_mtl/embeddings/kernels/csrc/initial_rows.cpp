// Initial weights by several threads, and PyTorch's scalar form of the Box-Muller transform.
#include <cmath>

#define DLRM_MTL_ISA portable
#include "initial_rows_impl.h"
#include "threads.h"

namespace dlrm_mtl {

void fill_initial_rows_scalar(const InitialRows& part) {
  portable::fill(part, [](float* values) {
    for (int64_t i = 0; i < 8; ++i) {
      const float u1 = 1.0f - values[i];
      const float theta = static_cast<float>(2.0 * 3.14159265358979323846 * static_cast<double>(values[i + 8]));
      const float radius = std::sqrt(-2.0f * std::log(u1));
      values[i] = radius * std::cos(theta) + 0.0f;
      values[i + 8] = radius * std::sin(theta) + 0.0f;
    }
  });
}

}  // namespace dlrm_mtl

using namespace dlrm_mtl;

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Number that changes with the meaning of the function below.
DLRM_MTL_API int64_t dlrm_mtl_initial_rows_interface() { return 1; }

// Fills all parts, by the form 0 (scalar) or 1 (AVX2). Returns false if this processor lacks it.
DLRM_MTL_API bool dlrm_mtl_initial_rows(const InitialRows* parts, int64_t count, int64_t form, int64_t threads) {
  void (*fill)(const InitialRows&) = fill_initial_rows_scalar;
  if (form == 1) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    fill = fill_initial_rows_avx2;
#else
    return false;
#endif
  }
  for_each_task(threads, count, [&](int64_t i) { fill(parts[i]); });
  return true;
}

}  // extern "C"
