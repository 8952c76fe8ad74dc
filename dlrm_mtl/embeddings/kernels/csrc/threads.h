// Loops over tasks on PyTorch's own threads: this library is compiled for OpenMP but not linked to a runtime of its own, so
// that the names resolve to the one that PyTorch has loaded.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

// Calls task(i) for i in [0, tasks), each once, in any order. No result may depend on which thread runs what.
template <class Task>
void for_each_task(int64_t threads, int64_t tasks, Task&& task) {
  if (threads > tasks) threads = tasks;
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < tasks; ++i) task(i);
}

}  // namespace dlrm_mtl
