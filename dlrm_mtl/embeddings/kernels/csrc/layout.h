// What Python hands over, and the names of sizes: T tables, F features, B bags per feature, N ids of a batch, U touched
// rows of all tables together, D_t columns and R_t rows of table t. Mirrored by the ctypes structures in cpu.py.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

struct Tables {
  void* weights;                  // [size] float32 or float16
  int64_t size;
  int64_t half;                   // whether the weights are float16
  const int64_t* weight_offsets;  // [T]
  const int64_t* row_offsets;     // [T + 1]
  const int64_t* dims;            // [T]
  const int64_t* feature_tables;  // [F] ascending
  int64_t tables;
  int64_t features;

  int64_t rows(int64_t table) const { return row_offsets[table + 1] - row_offsets[table]; }
};

// Why a call did nothing, or stopped.
struct Problem {
  enum Kind : int64_t { kNone = 0, kRowOutOfRange = 1, kOffsets = 2, kTooLarge = 3, kMemory = 4, kDim = 5, kLayout = 6 };
  int64_t kind;
  int64_t table;
  int64_t value;
};

// The rows that a batch touched. A row that occurs once shares its bag's gradient; only sums of several occurrences are
// written out. The gradient of touched row u is scales[u] times the D_t floats at gradient(u).
struct TouchedRows {
  const int64_t* rows;           // [U] row within its table, ascending; table after table
  const int64_t* table_offsets;  // [T + 1]
  const float* values;           // gradients of bags
  const float* sums;
  const int64_t* sources;        // [U] s >= 0: elements into values; s < 0: ~s elements into sums
  const float* scales;           // [U], or null for 1
  const float* maxima;           // [U] largest absolute value at gradient(u)
  const float* mean_squares;     // [U]

  const float* gradient(int64_t u) const { return sources[u] >= 0 ? values + sources[u] : sums + ~sources[u]; }
};

// What a batch looked up, and the gradient that came back.
struct Batch {
  // Pooled: ids and offsets as for the lookup, gradient [B, stride]. Otherwise offsets is null, ids are table after table,
  // and each has a row of its table's width in gradient, one behind the other.
  const int64_t* ids;           // [N]
  const int64_t* offsets;       // [F * B + 1] or null
  const int64_t* table_ids;     // [T + 1] where each table's ids begin; not read if pooled
  int64_t count;                // N
  int64_t bags;                 // B
  const float* gradient;
  int64_t stride;
  const float* bag_weights;     // [N] or null
  const bool* means;            // [F] features whose bags are averaged, or null
};

// Some columns of an output [B, W] of several tensors: `width` of them from `column`, to or from rows at `source`.
struct Columns {
  float* source;          // first row's first column
  int64_t stride;         // between rows at source
  int64_t column;
  int64_t width;
  const int64_t* counts;  // [B] numbers to divide by, where they are above 1; or null
};

// Where the gradients of the touched rows go. P is the number of gradients that come in: F * B bags, or N ids.
struct Collected {
  uint64_t* keys;           // [2 * N] scratch
  int32_t* bag_of;          // [N] scratch, with bag weights only
  float* payload_squares;   // [P] scratch
  float* payload_maxima;    // [P] scratch
  float* values;            // [sum of D_t * P_t] copy of the bags' gradients; unpooled: the gradient itself
  float* sums;              // [sum of D_t * (N_t / 2)]
  int64_t* rows;            // [N], of which U are used; so are the others
  int64_t* table_offsets;   // [T + 1]
  int64_t* sources;
  float* scales;            // null without bag weights
  float* squares;
  float* maxima;
};

// The update; see Update in layout.py, which has the same fields in the same order.
struct Update {
  enum Kind : int64_t { kSgd = 0, kAdagrad = 1, kClippy = 2 };
  int64_t kind;
  int64_t eps_inside;
  int64_t delayed;
  int64_t per_row;
  float lambda_rel;
  float lambda_abs;
  float eps;
  float lr;
};

// An update with state per element; see ElementUpdate in layout.py.
struct ElementUpdate {
  enum Kind : int64_t { kAdagrad = 0, kAdam = 1, kRowWiseAdam = 2, kFtrl = 3 };
  int64_t kind;
  float* first_state;   // in the layout of the weights
  float* second_state;  // the same, or null
  float* row_state;     // one number per row, or null
  const float* lr;      // [T]
  float first;
  float rest_of_first;
  float first_correction;
  float second;
  float rest_of_second;
  float second_correction;
  float eps;
  float beta;
  float l1;
  float l2;
};

}  // namespace dlrm_mtl
