// The function that stored.py calls: sums of bags of one table that is served.
#include <algorithm>
#include <new>
#include <numeric>
#include <vector>

#include "row_kernels.h"
#include "stored_rows.h"
#include "threads.h"

namespace {

constexpr int64_t kIdsPerTask = 1024;

bool fits(const dlrm_mtl::StoredTable& table) {
  using Format = dlrm_mtl::StoredFormat;
  switch (table.format) {
    case Format::kFloat32: return table.row_bytes == table.dim * 4;
    case Format::kFloat16: return table.row_bytes == table.dim * 2;
    case Format::kInt8: return table.row_bytes == table.dim + 4;
    case Format::kInt4: return table.row_bytes == (table.dim + 1) / 2 + 4;
  }
  return false;
}

}  // namespace

using namespace dlrm_mtl;

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Counted up with every change of what stored.py and this file exchange.
DLRM_MTL_API int64_t dlrm_mtl_stored_interface() { return 2; }

// Sums the rows of each of `bags` bags into out [bags, dim]. Bags begin at `starts` [bags] and end where the next begins, the last
// one at `count`; without `starts` each id is a bag. Where it returns false nothing in `out` may be used, and `problem` says why.
DLRM_MTL_API bool dlrm_mtl_stored_lookup(const StoredTable* table, const int64_t* ids, int64_t count, const int64_t* starts,
                                         int64_t bags, float* out, int64_t threads, Problem* problem) {
  *problem = {};
  if (table->dim <= 0 || table->rows < 0 || !fits(*table)) {
    problem->kind = Problem::kLayout;
    return false;
  }
  std::vector<int64_t> offsets;
  try {
    offsets.resize(bags + 1);
  } catch (const std::bad_alloc&) {
    problem->kind = Problem::kMemory;
    return false;
  }
  if (starts) {
    std::copy(starts, starts + bags, offsets.begin());
  } else {
    std::iota(offsets.begin(), offsets.end(), 0);
  }
  offsets[bags] = count;
  bool good = offsets[0] >= 0 && offsets[bags] <= count;
  for (int64_t bag = 0; bag < bags; ++bag) good &= offsets[bag] <= offsets[bag + 1];
  if (!good) {
    problem->kind = Problem::kOffsets;
    return false;
  }
  if (!bags) return true;
  const int64_t per_bag = std::max<int64_t>(1, (offsets[bags] - offsets[0]) / bags);
  const int64_t step = std::max<int64_t>(8, kIdsPerTask / per_bag), tasks = (bags + step - 1) / step;
  int64_t worst = INT64_MAX;  // the first task with a wrong id, whatever the number of threads
  for_each_task(threads, tasks, [&](int64_t task) {
    const int64_t first = task * step, last = std::min(bags, first + step);
    int64_t wrong_id;
    StoredSpan span{*table};
    span.ids = ids, span.offsets = offsets.data() + first, span.bags = last - first, span.last = offsets[last];
    span.out = out + first * table->dim;
    if (chosen_kernels->lookup_stored(span, &wrong_id)) return;
#pragma omp critical(dlrm_mtl_stored)
    if (task < worst) worst = task, *problem = {Problem::kRowOutOfRange, 0, wrong_id};
  });
  return problem->kind == Problem::kNone;
}

}  // extern "C"
