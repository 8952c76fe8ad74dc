// Lookup of the rows of one table that is served, in one of the formats of row_formats.py. What stored_lookup.cpp hands to the
// row kernels.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

// In the order of FORMATS in row_formats.py.
enum class StoredFormat : int64_t { kFloat32 = 0, kFloat16 = 1, kInt8 = 2, kInt4 = 3 };

// A table; mirrored by the ctypes structure in stored.py.
struct StoredTable {
  const uint8_t* table;  // [rows, row_bytes]
  int64_t rows;
  int64_t row_bytes;
  int64_t dim;
  StoredFormat format;
};

// Some bags of a table.
struct StoredSpan : StoredTable {
  const int64_t* ids;      // [N]
  const int64_t* offsets;  // [bags + 1] into ids
  int64_t bags;
  int64_t last;            // end of the ids that may be read ahead
  float* out;              // [bags, dim]
};

}  // namespace dlrm_mtl
