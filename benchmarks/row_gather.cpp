// How fast this machine can read random rows: reads every cache line of each row once and keeps nothing. The yardstick of
// `python -m benchmarks sparse-update`, compiled there.
#include <cstdint>

template <int distance>
static uint64_t read_rows(const char* table, int64_t row_bytes, const int64_t* ids, int64_t first, int64_t last) {
  uint64_t seen = 0;
  for (int64_t i = first; i < last; ++i) {
    if (i + distance < last) {
      const char* const ahead = table + ids[i + distance] * row_bytes;
      for (int64_t line = 0; line < row_bytes; line += 64) __builtin_prefetch(ahead + line);
    }
    const char* const row = table + ids[i] * row_bytes;
    for (int64_t line = 0; line < row_bytes; line += 64) seen ^= *reinterpret_cast<const uint64_t*>(row + line);
  }
  return seen;
}

extern "C" __attribute__((visibility("default"))) uint64_t read_random_rows(const char* table, int64_t row_bytes,
                                                                            const int64_t* ids, int64_t count,
                                                                            int64_t distance, int64_t threads) {
  uint64_t seen = 0;
#pragma omp parallel for num_threads(static_cast<int>(threads)) reduction(^ : seen)
  for (int64_t part = 0; part < threads; ++part) {
    const int64_t first = count * part / threads, last = count * (part + 1) / threads;
    switch (distance) {
      case 4: seen ^= read_rows<4>(table, row_bytes, ids, first, last); break;
      case 8: seen ^= read_rows<8>(table, row_bytes, ids, first, last); break;
      case 16: seen ^= read_rows<16>(table, row_bytes, ids, first, last); break;
      default: seen ^= read_rows<32>(table, row_bytes, ids, first, last);
    }
  }
  return seen;
}
