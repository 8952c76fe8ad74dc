// How fast this machine reads random rows, and reads and writes them: every cache line of each row once. The yardstick of
// `python -m benchmarks sparse-update` and `end-to-end`, compiled by row_pass.py.
#include <cstdint>

// Keeps nothing of what it reads; with `writes` each word is written back as it was (zero is 0).
template <bool writes>
static uint64_t pass(char* table, int64_t row_bytes, const int64_t* ids, int64_t first, int64_t last, int64_t distance,
                     uint64_t zero) {
  uint64_t seen = 0;
  for (int64_t i = first; i < last; ++i) {
    if (i + distance < last) {
      const char* const ahead = table + ids[i + distance] * row_bytes;
      for (int64_t line = 0; line < row_bytes; line += 64) __builtin_prefetch(ahead + line, writes);
    }
    char* const row = table + ids[i] * row_bytes;
    if constexpr (writes) {
      uint64_t* const words = reinterpret_cast<uint64_t*>(row);
      for (int64_t word = 0; word < row_bytes / 8; ++word) words[word] ^= zero;
    } else {
      for (int64_t line = 0; line < row_bytes; line += 64) seen ^= *reinterpret_cast<const uint64_t*>(row + line);
    }
  }
  return seen;
}

extern "C" __attribute__((visibility("default"))) uint64_t pass_over_rows(char* table, int64_t row_bytes, const int64_t* ids,
                                                                          int64_t count, int64_t distance, int64_t threads,
                                                                          int64_t writes, uint64_t zero) {
  uint64_t seen = 0;
#pragma omp parallel for num_threads(static_cast<int>(threads)) reduction(^ : seen)
  for (int64_t part = 0; part < threads; ++part) {
    const int64_t first = count * part / threads, last = count * (part + 1) / threads;
    seen ^= writes ? pass<true>(table, row_bytes, ids, first, last, distance, zero)
                   : pass<false>(table, row_bytes, ids, first, last, distance, zero);
  }
  return seen;
}
