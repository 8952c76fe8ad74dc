// The functions that cpu.py calls. Each cuts its work into tasks, whatever the number of threads, and returns false with a
// Problem where it could not be done.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "arithmetic.h"
#include "layout.h"
#include "radix_sort.h"
#include "row_kernels.h"
#include "threads.h"

namespace dlrm_mtl {

Arithmetic arithmetic = {nullptr, 0, false};

namespace {

constexpr int64_t kIdsPerTask = 1024;
constexpr int64_t kKeysPerTask = 4096;

struct Failure {
  Problem problem;
};

// The first problem that tasks report. Tasks go on to the end, so the choice does not depend on the number of threads.
class Problems {
 public:
  void report(int64_t task, Problem problem) {
#pragma omp critical(dlrm_mtl_problems)
    if (task < task_) task_ = task, problem_ = problem;
  }
  void raise() const {
    if (problem_.kind != Problem::kNone) throw Failure{problem_};
  }

 private:
  int64_t task_ = INT64_MAX;
  Problem problem_{};
};

int bits_of(uint64_t largest) {
  int bits = 0;
  for (; largest; largest >>= 1) ++bits;
  return bits;
}

void* address(const Tables& tables, int64_t table, int64_t row = 0) {
  const int64_t element = tables.weight_offsets[table] + row * tables.dims[table];
  return static_cast<char*>(tables.weights) + element * (tables.half ? 2 : 4);
}

// Refuses tables that would make a kernel reach outside of them.
void check(const Tables& tables) {
  for (int64_t table = 0; table < tables.tables; ++table) {
    const int64_t dim = tables.dims[table], first = tables.weight_offsets[table], rows = tables.rows(table);
    if (dim <= 0 || dim % 4) throw Failure{{Problem::kDim, table, dim}};
    if (rows < 0 || first < 0 || first + rows * dim > tables.size) throw Failure{{Problem::kLayout, table, 0}};
  }
  for (int64_t feature = 0; feature < tables.features; ++feature) {
    const int64_t table = tables.feature_tables[feature];
    const bool ascending = feature == 0 || tables.feature_tables[feature - 1] <= table;
    if (!ascending || table < 0 || table >= tables.tables) throw Failure{{Problem::kLayout, table, 0}};
  }
}

// First column of each feature in a pooled output.
std::vector<int64_t> output_columns(const Tables& tables) {
  std::vector<int64_t> columns(tables.features + 1);
  for (int64_t feature = 0; feature < tables.features; ++feature) {
    columns[feature + 1] = columns[feature] + tables.dims[tables.feature_tables[feature]];
  }
  return columns;
}

// Some bags of one feature: about kIdsPerTask ids, so that features with large bags spread as well as those with small.
struct BagTask {
  int64_t feature;
  int64_t first;
  int64_t last;
};

std::vector<BagTask> cut_bags(const Tables& tables, const int64_t* offsets, int64_t count, int64_t bags) {
  std::vector<BagTask> tasks;
  for (int64_t feature = 0; feature < tables.features; ++feature) {
    const int64_t first = offsets[feature * bags], last = offsets[(feature + 1) * bags];
    if (first < 0 || first > last || last > count) throw Failure{{Problem::kOffsets, tables.feature_tables[feature], 0}};
    const int64_t per_bag = std::max<int64_t>(1, bags ? (last - first) / bags : 1);
    const int64_t step = std::max<int64_t>(8, kIdsPerTask / per_bag);
    for (int64_t bag = 0; bag < bags; bag += step) tasks.push_back({feature, bag, std::min(bags, bag + step)});
  }
  return tasks;
}

bool are_in_order(const int64_t* offsets, int64_t bags, int64_t count) {
  bool good = offsets[0] >= 0 && offsets[bags] <= count;
  for (int64_t bag = 0; bag < bags; ++bag) good &= offsets[bag] <= offsets[bag + 1];
  return good;
}

void lookup(const Tables& tables, const Batch& batch, float* out, int64_t threads) {
  const std::vector<int64_t> columns = output_columns(tables);
  const std::vector<BagTask> tasks = cut_bags(tables, batch.offsets, batch.count, batch.bags);
  Problems problems;
  for_each_task(threads, tasks.size(), [&](int64_t i) {
    const auto [feature, first, last] = tasks[i];
    const int64_t table = tables.feature_tables[feature];
    const int64_t* const offsets = batch.offsets + feature * batch.bags + first;
    if (!are_in_order(offsets, last - first, batch.count)) {
      return problems.report(i, {Problem::kOffsets, table, 0});
    }
    int64_t wrong_id;
    const LookupSpan span = {address(tables, table), tables.half != 0, tables.rows(table), tables.dims[table], batch.ids,
                             offsets, batch.bag_weights, last - first, offsets[last - first],
                             out + first * columns.back() + columns[feature], columns.back(),
                             batch.means && batch.means[feature]};
    if (!chosen_kernels->lookup(span, &wrong_id)) problems.report(i, {Problem::kRowOutOfRange, table, wrong_id});
  });
  problems.raise();
}

// ---- collect ----

// One table's share of a batch.
struct TablePart {
  int64_t first;          // of its ids
  int64_t count;          // N_t
  int64_t first_payload;  // of its bags, or ids
  int64_t payloads;       // P_t
  int64_t block;          // where its gradients begin in values
  int64_t sums;           // where its sums begin
  int payload_bits;
  int row_bits;
  const uint64_t* sorted;
};

std::vector<TablePart> divide(const Tables& tables, const Batch& batch) {
  std::vector<TablePart> parts(tables.tables);
  int64_t feature = 0, block = 0, sums = 0;
  for (int64_t table = 0; table < tables.tables; ++table) {
    TablePart& part = parts[table];
    const int64_t first_feature = feature;
    while (feature < tables.features && tables.feature_tables[feature] == table) ++feature;
    if (batch.offsets) {
      part.first = batch.offsets[first_feature * batch.bags];
      part.count = batch.offsets[feature * batch.bags] - part.first;
      part.first_payload = first_feature * batch.bags;
      part.payloads = (feature - first_feature) * batch.bags;
    } else {
      part.first = part.first_payload = batch.table_ids[table];
      part.count = part.payloads = batch.table_ids[table + 1] - part.first;
    }
    if (part.count < 0) throw Failure{{Problem::kOffsets, table, 0}};
    part.block = block;
    part.sums = sums;
    block += part.payloads * tables.dims[table];
    sums += part.count / 2 * tables.dims[table];
    part.row_bits = bits_of(std::max<int64_t>(1, tables.rows(table)) - 1);
    part.payload_bits = bits_of(std::max<int64_t>(1, batch.bag_weights ? part.count : part.payloads) - 1);
    if (part.row_bits + part.payload_bits > 64 || part.payloads > INT32_MAX || part.count > UINT32_MAX) {
      throw Failure{{Problem::kTooLarge, table, part.count}};
    }
  }
  return parts;
}

// Writes the keys of some bags. Returns false, and the first such id, where an id is out of range.
bool write_bag_keys(const Batch& batch, const TablePart& part, uint64_t rows, const int64_t* offsets, int64_t bags,
                    uint64_t bag, const Collected& to, int64_t* wrong_id) {
  for (int64_t b = 0; b < bags; ++b, ++bag) {
    for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
      const uint64_t id = batch.ids[i];
      if (id >= rows) {
        *wrong_id = batch.ids[i];
        return false;
      }
      if (batch.bag_weights) {
        to.bag_of[i] = static_cast<int32_t>(bag);
        to.keys[i] = id << part.payload_bits | static_cast<uint64_t>(i - part.first);
      } else {
        to.keys[i] = id << part.payload_bits | bag;
      }
    }
  }
  return true;
}

// Keys of all ids; a copy of the gradient in which each table's bags lie together, and its sums of squares.
void prepare_bags(const Tables& tables, const Batch& batch, const std::vector<TablePart>& parts, const Collected& to,
                  int64_t threads) {
  const std::vector<int64_t> columns = output_columns(tables);
  const std::vector<BagTask> tasks = cut_bags(tables, batch.offsets, batch.count, batch.bags);
  Problems problems;
  for_each_task(threads, tasks.size(), [&](int64_t i) {
    const auto [feature, first, last] = tasks[i];
    const int64_t table = tables.feature_tables[feature], payload = feature * batch.bags + first;
    const TablePart& part = parts[table];
    const int64_t bag = payload - part.first_payload, dim = tables.dims[table];
    const int64_t* const offsets = batch.offsets + payload;
    int64_t wrong_id;
    if (!are_in_order(offsets, last - first, batch.count) || offsets[0] < part.first ||
        offsets[last - first] > part.first + part.count) {
      return problems.report(i, {Problem::kOffsets, table, 0});
    }
    if (!write_bag_keys(batch, part, tables.rows(table), offsets, last - first, bag, to, &wrong_id)) {
      return problems.report(i, {Problem::kRowOutOfRange, table, wrong_id});
    }
    chosen_kernels->copy_bags({batch.gradient + first * batch.stride + columns[feature], batch.stride, offsets, last - first, dim,
                        to.values + part.block + bag * dim, to.payload_squares + payload, to.payload_maxima + payload,
                        batch.means && batch.means[feature]});
  });
  problems.raise();
}

// A piece of one table's ids or keys.
struct Piece {
  int64_t table;
  int64_t first;
  int64_t last;
  int64_t touched = 0;  // rows that begin here; then the number of the first of them
  int64_t sum = 0;      // those with several occurrences; then where the first of their sums goes
};

std::vector<Piece> cut_keys(const std::vector<TablePart>& parts) {
  std::vector<Piece> pieces;
  for (size_t table = 0; table < parts.size(); ++table) {
    for (int64_t first = 0; first < parts[table].count; first += kKeysPerTask) {
      pieces.push_back({static_cast<int64_t>(table), first, std::min(parts[table].count, first + kKeysPerTask)});
    }
  }
  return pieces;
}

// As prepare_bags, where each id has a gradient of its own, which stays where it is.
void prepare_ids(const Tables& tables, const Batch& batch, const std::vector<TablePart>& parts, const Collected& to,
                 int64_t threads) {
  const std::vector<Piece> pieces = cut_keys(parts);
  Problems problems;
  for_each_task(threads, pieces.size(), [&](int64_t task) {
    const Piece& piece = pieces[task];
    const TablePart& part = parts[piece.table];
    const int64_t dim = tables.dims[piece.table], begin = part.first + piece.first;
    for (int64_t i = piece.first; i < piece.last; ++i) {
      const int64_t id = batch.ids[part.first + i];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(tables.rows(piece.table))) {
        return problems.report(task, {Problem::kRowOutOfRange, piece.table, id});
      }
      to.keys[part.first + i] = static_cast<uint64_t>(id) << part.payload_bits | static_cast<uint64_t>(i);
    }
    chosen_kernels->measure(to.values + part.block + piece.first * dim, dim, piece.last - piece.first, to.payload_squares + begin,
                     to.payload_maxima + begin);
  });
  problems.raise();
}

// Counts the rows that begin in a piece, and those of them that occur several times.
void count_runs(const TablePart& part, Piece& piece) {
  const uint64_t* const keys = part.sorted;
  const int shift = part.payload_bits;
  const auto repeats = [&](int64_t i) {  // the row of the key before
    return i > 0 && i < part.count && keys[i] >> shift == keys[i - 1] >> shift;
  };
  bool old = repeats(piece.first);
  for (int64_t i = piece.first; i < piece.last; ++i) {
    const bool next_old = repeats(i + 1);
    piece.touched += !old;
    piece.sum += !old && next_old;
    old = next_old;
  }
}

// Sorts each table's keys by row, occurrences of a row in the order of the batch, and counts the rows of each piece.
void sort_keys(std::vector<TablePart>& parts, std::vector<Piece>& pieces, const Collected& to, int64_t count,
               int64_t threads) {
  std::vector<int64_t> first_piece(parts.size() + 1, pieces.size());
  for (int64_t i = pieces.size() - 1; i >= 0; --i) first_piece[pieces[i].table] = i;
  for (int64_t table = parts.size() - 1; table >= 0; --table) {
    first_piece[table] = std::min(first_piece[table], first_piece[table + 1]);
  }
  const auto sort = [&](int64_t table, int64_t with_threads) {
    TablePart& part = parts[table];
    uint64_t* const keys = to.keys + part.first;
    part.sorted =
        radix_sort(keys, keys + count, part.count, part.payload_bits, part.payload_bits + part.row_bits, with_threads);
    const int64_t first = first_piece[table];
    for_each_task(with_threads, first_piece[table + 1] - first, [&](int64_t i) { count_runs(part, pieces[first + i]); });
  };
  // All threads share a table that would keep one of them busy while the others wait; else each takes tables, largest first.
  std::vector<int64_t> alone;
  for (size_t table = 0; table < parts.size(); ++table) {
    if (threads > 1 && parts[table].count > 2 * kKeysPerTask && parts[table].count > count / (2 * threads)) {
      sort(table, threads);
    } else {
      alone.push_back(table);
    }
  }
  std::stable_sort(alone.begin(), alone.end(), [&](int64_t a, int64_t b) { return parts[a].count > parts[b].count; });
  for_each_task(threads, alone.size(), [&](int64_t i) { sort(alone[i], 1); });
}

// Turns the counts of pieces into the places where their results go.
void place_runs(const Tables& tables, const std::vector<TablePart>& parts, std::vector<Piece>& pieces,
                int64_t* table_offsets) {
  size_t next = 0;
  int64_t touched = 0;
  for (int64_t table = 0; table < tables.tables; ++table) {
    table_offsets[table] = touched;
    int64_t sum = parts[table].sums;
    for (; next < pieces.size() && pieces[next].table == table; ++next) {
      Piece& piece = pieces[next];
      const int64_t rows = piece.touched, repeated = piece.sum;
      piece.touched = touched;
      piece.sum = sum;
      touched += rows;
      sum += repeated * tables.dims[table];
    }
  }
  table_offsets[tables.tables] = touched;
}

// Adds up the rows that occur so often that one thread would keep the others waiting, some columns at a time.
void sum_long_runs(const std::vector<LongRun>& runs, const std::vector<SortedKeys>& sorted, const Collected& to,
                   int64_t threads) {
  struct Columns {
    const LongRun* run;
    int64_t first;
  };
  std::vector<Columns> tasks;
  for (const LongRun& run : runs) {
    for (int64_t column = 0; column < sorted[run.table].dim; column += kSlab) tasks.push_back({&run, column});
  }
  const auto sum_of = [&](const LongRun& run) { return to.sums + ~to.sources[run.touched]; };
  for_each_task(threads, tasks.size(), [&](int64_t i) {
    const auto [run, column] = tasks[i];
    chosen_kernels->sum_long_run(sorted[run->table], *run, column, sum_of(*run));
  });
  for (const LongRun& run : runs) {
    chosen_kernels->measure(sum_of(run), sorted[run.table].dim, 1, to.squares + run.touched, to.maxima + run.touched);
  }
}

void collect(const Tables& tables, const Batch& batch, const Collected& to, int64_t threads) {
  std::vector<TablePart> parts = divide(tables, batch);
  batch.offsets ? prepare_bags(tables, batch, parts, to, threads) : prepare_ids(tables, batch, parts, to, threads);
  std::vector<Piece> pieces = cut_keys(parts);
  sort_keys(parts, pieces, to, batch.count, threads);
  place_runs(tables, parts, pieces, to.table_offsets);
  std::vector<SortedKeys> sorted;
  for (int64_t table = 0; table < tables.tables; ++table) {
    const TablePart& part = parts[table];
    const bool weighted = batch.bag_weights != nullptr;
    sorted.push_back({part.sorted, part.count, part.payload_bits, tables.dims[table], part.block, to.values,
                      to.payload_squares + part.first_payload, to.payload_maxima + part.first_payload,
                      weighted ? to.bag_of + part.first : nullptr, weighted ? batch.bag_weights + part.first : nullptr});
  }
  std::vector<LongRun> long_runs(batch.count / kLongRun + 1);
  int64_t long_run_count = 0;
  for_each_task(threads, pieces.size(), [&](int64_t i) {
    const Piece& piece = pieces[i];
    chosen_kernels->sum_runs({sorted[piece.table], piece.table, piece.first, piece.last, piece.touched, piece.sum, to.sums, to.rows,
                       to.sources, to.scales, to.squares, to.maxima, long_runs.data(), &long_run_count});
  });
  long_runs.resize(long_run_count);
  sum_long_runs(long_runs, sorted, to, threads);
}

// One row for each id, in their order.
void lookup_rows(const Tables& tables, const Batch& batch, const int64_t* offsets, float* out, int64_t threads) {
  const std::vector<TablePart> parts = divide(tables, batch);
  const std::vector<Piece> pieces = cut_keys(parts);
  Problems problems;
  for_each_task(threads, pieces.size(), [&](int64_t i) {
    const Piece& piece = pieces[i];
    const TablePart& part = parts[piece.table];
    const int64_t dim = tables.dims[piece.table], first = part.first + piece.first, count = piece.last - piece.first;
    int64_t wrong_id;
    const LookupSpan span = {address(tables, piece.table), tables.half != 0, tables.rows(piece.table), dim, batch.ids,
                             offsets + first, nullptr, count, first + count, out + part.block + piece.first * dim, dim};
    if (!chosen_kernels->lookup(span, &wrong_id)) problems.report(i, {Problem::kRowOutOfRange, piece.table, wrong_id});
  });
  problems.raise();
}

// ---- factors, apply ----

// Calls body(table, span) for pieces of every table's touched rows. Descending for factors and ascending for the update, which
// then begins with the rows that are still in the cache.
template <bool descending = false, class Body>
void for_touched(const Tables& tables, const TouchedRows& touched, const Update& rule, float* state, int64_t threads,
                 Body&& body) {
  struct Task {
    int64_t table;
    TouchedSpan span;
  };
  std::vector<Task> tasks;
  for (int64_t table = 0; table < tables.tables; ++table) {
    const int64_t begin = touched.table_offsets[table], end = touched.table_offsets[table + 1];
    // Rows ascend, so two comparisons keep a foreign list from writing outside of the table.
    for (const int64_t u : {begin, end - 1}) {
      if (begin < end && static_cast<uint64_t>(touched.rows[u]) >= static_cast<uint64_t>(tables.rows(table))) {
        throw Failure{{Problem::kRowOutOfRange, table, touched.rows[u]}};
      }
    }
    for (int64_t first = begin; first < end; first += kTouchedSpan) {
      tasks.push_back({table,
                       {&touched, &rule, first, std::min(end, first + kTouchedSpan), tables.dims[table],
                        address(tables, table), tables.half != 0, state ? state + tables.row_offsets[table] : nullptr}});
    }
  }
  if (descending) std::reverse(tasks.begin(), tasks.end());
  for_each_task(threads, tasks.size(), [&](int64_t i) { body(tasks[i].table, tasks[i].span); });
}

template <class Body>
bool guarded(const Tables& tables, Problem* problem, Body&& body) {
  *problem = {};
  try {
    check(tables);
    body();
  } catch (const Failure& failure) {
    *problem = failure.problem;
  } catch (const std::bad_alloc&) {
    problem->kind = Problem::kMemory;
  }
  return problem->kind == Problem::kNone;
}

}  // namespace
}  // namespace dlrm_mtl

using namespace dlrm_mtl;

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Counted up with every change of what Python and this library exchange; cpu.py refuses another one.
DLRM_MTL_API int64_t dlrm_mtl_interface() { return 4; }

// Sets the square root and the rounding of addcmul; see Arithmetic.
DLRM_MTL_API void dlrm_mtl_arithmetic(void* roots, int64_t mode, int64_t fused) {
  arithmetic = {reinterpret_cast<void (*)(int, const float*, float*, int64_t)>(roots), mode, fused != 0};
}

DLRM_MTL_API bool dlrm_mtl_lookup(const Tables* tables, const Batch* batch, float* out, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] { lookup(*tables, *batch, out, threads); });
}

// One row for each id. `offsets` is 0, 1, ..., N: each id is a bag of its own.
DLRM_MTL_API bool dlrm_mtl_lookup_rows(const Tables* tables, const Batch* batch, const int64_t* offsets, float* out,
                                       int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] { lookup_rows(*tables, *batch, offsets, out, threads); });
}

DLRM_MTL_API bool dlrm_mtl_collect(const Tables* tables, const Batch* batch, const Collected* to, int64_t threads,
                                   Problem* problem) {
  return guarded(*tables, problem, [&] { collect(*tables, *batch, *to, threads); });
}

// Writes the gradients of all touched rows one after the other.
DLRM_MTL_API bool dlrm_mtl_expand(const Tables* tables, const TouchedRows* touched, float* out, int64_t threads,
                                  Problem* problem) {
  const Update no_rule = {};
  return guarded(*tables, problem, [&] {
    std::vector<float*> begins;
    for (int64_t table = 0; table < tables->tables; ++table) {
      begins.push_back(out);
      out += (touched->table_offsets[table + 1] - touched->table_offsets[table]) * tables->dims[table];
    }
    for_touched(*tables, *touched, no_rule, nullptr, threads, [&](int64_t table, const TouchedSpan& span) {
      chosen_kernels->expand(span, begins[table] + (span.first - touched->table_offsets[table]) * span.dim);
    });
  });
}

// Largest absolute value and sum of squares of each of `count` rows.
DLRM_MTL_API bool dlrm_mtl_measure(const Tables* tables, const float* rows, int64_t dim, int64_t count, float* squares,
                                   float* maxima, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] {
    for_each_task(threads, (count + kTouchedSpan - 1) / kTouchedSpan, [&](int64_t i) {
      const int64_t first = i * kTouchedSpan;
      chosen_kernels->measure(rows + first * dim, dim, std::min(kTouchedSpan, count - first), squares + first, maxima + first);
    });
  });
}

// [T] the factor of each table.
DLRM_MTL_API bool dlrm_mtl_factors(const Tables* tables, const TouchedRows* touched, const Update* rule, float* state,
                                   float* factors, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] {
    std::fill(factors, factors + tables->tables, 1.0f);
    for_touched<true>(*tables, *touched, *rule, state, threads, [&](int64_t table, const TouchedSpan& span) {
      chosen_kernels->find_factor(span, factors + table);
    });
  });
}

// [U] the factor of each touched row.
DLRM_MTL_API bool dlrm_mtl_row_factors(const Tables* tables, const TouchedRows* touched, const Update* rule, float* state,
                                       float* factors, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] {
    for_touched(*tables, *touched, *rule, state, threads,
                [&](int64_t, const TouchedSpan& span) { chosen_kernels->row_factors(span, factors); });
  });
}

// [T] the largest change of any coordinate of each table before the table's factor.
DLRM_MTL_API bool dlrm_mtl_largest_moves(const Tables* tables, const TouchedRows* touched, const Update* rule, float* state,
                                         float* moves, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] {
    std::fill(moves, moves + tables->tables, 0.0f);
    for_touched(*tables, *touched, *rule, state, threads, [&](int64_t table, const TouchedSpan& span) {
      chosen_kernels->find_largest_direction(span, moves + table);
    });
    for (int64_t table = 0; table < tables->tables; ++table) moves[table] *= rule->lr;
  });
}

DLRM_MTL_API bool dlrm_mtl_apply(const Tables* tables, const TouchedRows* touched, const Update* rule, float* state,
                                 const float* factors, int64_t threads, Problem* problem) {
  return guarded(*tables, problem, [&] {
    for_touched(*tables, *touched, *rule, state, threads,
                [&](int64_t table, const TouchedSpan& span) { chosen_kernels->apply(span, factors[table]); });
  });
}

// As dlrm_mtl_apply, for rules with state per element.
DLRM_MTL_API bool dlrm_mtl_apply_elements(const Tables* tables, const TouchedRows* touched, const ElementUpdate* rule,
                                          int64_t threads, Problem* problem) {
  const Update no_rule = {};
  return guarded(*tables, problem, [&] {
    for_touched(*tables, *touched, no_rule, rule->row_state, threads, [&](int64_t table, const TouchedSpan& span) {
      const int64_t start = tables->weight_offsets[table];
      chosen_kernels->apply_elements({span, rule, rule->first_state + start,
                                      rule->second_state ? rule->second_state + start : nullptr, rule->lr[table]});
    });
  });
}

}  // extern "C"
