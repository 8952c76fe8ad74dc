// The function that arrange.py calls: columns of several tensors put side by side into one, and back, in one pass.
#include <algorithm>
#include <cstring>

#include "layout.h"
#include "threads.h"

namespace {

constexpr int64_t kBytesPerTask = 1 << 18;

// Copies `width` floats, divided by `count` where it is above 1.
inline void copy(float* to, const float* from, int64_t width, int64_t count) {
  if (count <= 1) {
    std::memcpy(to, from, width * sizeof(float));
    return;
  }
  const float divisor = static_cast<float>(count);
  for (int64_t i = 0; i < width; ++i) to[i] = from[i] / divisor;
}

}  // namespace

using namespace dlrm_mtl;

extern "C" {

// Fills rows of out [rows, stride] from the sources; with `backward` the sources from out, which divides alike.
__attribute__((visibility("default"))) bool dlrm_mtl_arrange(const Columns* columns, int64_t count, float* out, int64_t rows,
                                                             int64_t stride, int64_t backward, int64_t threads,
                                                             Problem* problem) {
  *problem = {};
  const int64_t step = std::max<int64_t>(1, kBytesPerTask / (4 * std::max<int64_t>(1, stride)));
  for_each_task(threads, (rows + step - 1) / step, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * step);
    for (int64_t row = task * step; row < last; ++row) {
      float* const there = out + row * stride;
      for (int64_t i = 0; i < count; ++i) {
        const Columns& part = columns[i];
        float* const here = part.source + row * part.stride;
        const int64_t number = part.counts ? part.counts[row] : 1;
        backward ? copy(here, there + part.column, part.width, number) : copy(there + part.column, here, part.width, number);
      }
    }
  });
  return true;
}

}  // extern "C"
