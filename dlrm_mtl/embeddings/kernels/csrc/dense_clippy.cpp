// Dense Clippy over all parameters of a group: the functions that dlrm_mtl/optim/clippy_native.py calls.
#include "dense_clippy.h"

#include <algorithm>
#include <new>
#include <vector>

#include "row_kernels.h"
#include "threads.h"

namespace dlrm_mtl {
namespace {

struct Task {
  int64_t parameter;
  int64_t first;
  int64_t last;
};

std::vector<Task> cut(const int64_t* sizes, int64_t parameters) {
  std::vector<Task> tasks;
  for (int64_t p = 0; p < parameters; ++p) {
    for (int64_t first = 0; first < sizes[p]; first += kDenseSpan) {
      tasks.push_back({p, first, std::min(sizes[p], first + kDenseSpan)});
    }
  }
  return tasks;
}

// Fewer threads where waking them would take longer than the work.
int64_t useful(int64_t threads, const std::vector<Task>& tasks) {
  int64_t elements = 0;
  for (const Task& task : tasks) elements += task.last - task.first;
  return std::min(threads, elements / kDenseSpan + 1);
}

}  // namespace
}  // namespace dlrm_mtl

using namespace dlrm_mtl;

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Writes the extents of P parameters, all of whose sizes are above 0. Returns false if there is no memory.
DLRM_MTL_API bool dlrm_mtl_measure_dense(const DenseRule* rule, float* const* weights, const float* const* gradients,
                                         float* const* accumulators, const int64_t* sizes, int64_t parameters,
                                         DenseExtent* extents, int64_t threads) try {
  const std::vector<Task> tasks = cut(sizes, parameters);
  std::fill(extents, extents + parameters, DenseExtent{0, 0, 0});
  for_each_task(useful(threads, tasks), tasks.size(), [&](int64_t i) {
    const auto [p, first, last] = tasks[i];
    chosen_kernels->measure_dense(
        {rule, weights[p] + first, gradients[p] + first, accumulators[p] + first, last - first, 0, 0}, extents + p);
  });
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

// Updates weights and accumulators; scales and factors are [P].
DLRM_MTL_API bool dlrm_mtl_apply_dense(const DenseRule* rule, float* const* weights, const float* const* gradients,
                                       float* const* accumulators, const int64_t* sizes, int64_t parameters,
                                       const float* scales, const float* factors, int64_t threads) try {
  const std::vector<Task> tasks = cut(sizes, parameters);
  for_each_task(useful(threads, tasks), tasks.size(), [&](int64_t i) {
    const auto [p, first, last] = tasks[i];
    chosen_kernels->apply_dense({rule, weights[p] + first, gradients[p] + first, accumulators[p] + first, last - first,
                                 scales[p], factors[p]});
  });
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

}  // extern "C"
