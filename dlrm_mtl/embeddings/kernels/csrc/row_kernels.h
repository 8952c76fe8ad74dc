// The loops over rows, once for each instruction set. Each works on a span: a piece of one table's work for one thread.
#pragma once

#include <cstdint>

#include "dense_clippy.h"
#include "layout.h"
#include "stored_rows.h"

namespace dlrm_mtl {

// Some bags of one feature.
struct LookupSpan {
  const void* table;         // [rows, dim] float32 or float16
  bool half;
  int64_t rows;
  int64_t dim;
  const int64_t* ids;        // [N]
  const int64_t* offsets;    // [bags + 1] into ids
  const float* bag_weights;  // [N] or null
  int64_t bags;
  int64_t last;              // end of the ids that may be read ahead
  float* out;                // first bag's first column
  int64_t out_stride;
  bool mean;                 // whether sums are divided by the bags' numbers of ids
};

// The gradient of some bags of one feature.
struct BagSpan {
  const float* gradient;   // first bag's first column
  int64_t stride;
  const int64_t* offsets;  // [bags + 1]
  int64_t bags;
  int64_t dim;
  float* values;           // [bags, dim] filled where a bag has ids
  float* squares;          // [bags]
  float* maxima;           // [bags]
  bool mean;               // whether the gradient is that of a mean
};

// A row that occurs so often that its columns are spread over threads.
struct LongRun {
  int64_t table;
  int64_t first;  // into the table's sorted keys
  int64_t last;
  int64_t touched;
};

// How one table's sorted keys are to be read: row << payload_bits | payload. A payload is the number of the bag (of all
// bags of the table's features), or with bag weights the number of the id within the table.
struct SortedKeys {
  const uint64_t* keys;
  int64_t count;
  int payload_bits;
  int64_t dim;
  int64_t block;             // where the table's payload gradients begin in values
  const float* values;
  const float* squares;      // [payloads] sums of squares of the gradients
  const float* maxima;       // [payloads] their largest absolute values
  const int32_t* bag_of;     // [ids of the table] or null
  const float* bag_weights;  // [ids of the table] or null

  uint64_t row(int64_t i) const { return keys[i] >> payload_bits; }
  uint64_t payload(int64_t i) const { return keys[i] & ((uint64_t{1} << payload_bits) - 1); }
  int64_t bag(uint64_t payload) const { return bag_of ? bag_of[payload] : static_cast<int64_t>(payload); }
  int64_t source(uint64_t payload) const { return block + bag(payload) * dim; }
};

// The runs of equal rows that begin in keys [first, last) of one table, and where their results go.
struct RunSpan {
  SortedKeys sorted;
  int64_t table;
  int64_t first;
  int64_t last;
  int64_t touched;  // number of the first run's row among all touched rows
  int64_t sum;      // where in sums the first row with several occurrences goes
  float* sums;
  int64_t* rows;
  int64_t* sources;
  float* scales;  // null without bag weights
  float* squares;
  float* maxima;
  LongRun* long_runs;
  int64_t* long_run_count;  // counted up by several threads
};

// Touched rows [first, last) of one table.
struct TouchedSpan {
  const TouchedRows* touched;
  const Update* rule;
  int64_t first;
  int64_t last;
  int64_t dim;
  void* table;   // [R_t, dim]
  bool half;
  float* state;  // [R_t]; null for SGD
};

// Touched rows of one table, for a rule with state per element.
struct ElementSpan {
  TouchedSpan touched;  // state: the rule's state per row, or null
  const ElementUpdate* rule;
  float* first;         // [R_t, dim]
  float* second;        // [R_t, dim] or null
  float lr;
};

constexpr int64_t kLongRun = 4096;    // occurrences
constexpr int64_t kTouchedSpan = 512;  // most rows of a TouchedSpan
constexpr int64_t kSlab = 64;         // most columns of for_slabs
constexpr float kNonFinite = -1.0f;   // NON_FINITE in layout.py

struct RowKernels {
  const char* name;
  // Returns false, and the first such id, where an id is out of range.
  bool (*lookup)(const LookupSpan&, int64_t* wrong_id);
  void (*copy_bags)(const BagSpan&);
  void (*measure)(const float* rows, int64_t dim, int64_t count, float* squares, float* maxima);
  void (*sum_runs)(const RunSpan&);
  void (*sum_long_run)(const SortedKeys&, const LongRun&, int64_t column, float* out);
  // Lowers `factor`, which other threads lower as well, to the smallest factor of the span's rows; to kNonFinite where a mean
  // square is not finite.
  void (*find_factor)(const TouchedSpan&, float* factor);
  void (*apply)(const TouchedSpan&, float factor);
  void (*row_factors)(const TouchedSpan&, float* factors);  // [U] of all tables
  // Raises `largest`, which other threads raise as well, to the largest |r| of the span, times its row's factor if per row.
  void (*find_largest_direction)(const TouchedSpan&, float* largest);
  void (*expand)(const TouchedSpan&, float* out);
  // Returns false, and the first such id, where an id is out of range.
  bool (*lookup_stored)(const StoredSpan&, int64_t* wrong_id);
  void (*apply_elements)(const ElementSpan&);
  void (*measure_dense)(const DenseSpan&, DenseExtent* extent);
  void (*apply_dense)(const DenseSpan&);
};

extern const RowKernels kPortableKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
#endif

extern const RowKernels* chosen_kernels;  // by dlrm_mtl_select

}  // namespace dlrm_mtl
