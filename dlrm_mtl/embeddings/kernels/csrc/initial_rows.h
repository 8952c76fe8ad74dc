// Initial weights: normal numbers with the bits of torch.Tensor.normal_ on the CPU.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

// Part of one block of rows of a table. A block has a Mersenne Twister of its own; its numbers fill the rows in order.
struct InitialRows {
  float* out;        // number at (row, column)
  int64_t stride;    // numbers from a row of out to the next one
  int64_t row;       // first row of the part in the block
  int64_t rows;
  int64_t column;    // first column of the part in the table
  int64_t width;     // columns of the part
  int64_t columns;   // columns of the table; columns times the rows of a whole block is a multiple of 16
  int64_t seed;      // only the lower 32 bits count, as in PyTorch
  float std;
};

void fill_initial_rows_scalar(const InitialRows& part);
#if defined(__x86_64__)
void fill_initial_rows_avx2(const InitialRows& part);
#endif

}  // namespace dlrm_mtl
