#include "radix_sort.h"

#include <utility>
#include <vector>

#include "threads.h"

namespace dlrm_mtl {
namespace {

// 2^11 counters of 4 bytes and as many write positions still fit the first-level cache.
constexpr int kMaxDigitBits = 11;

struct Digit {
  int shift;
  uint64_t mask;
  int64_t buckets() const { return static_cast<int64_t>(mask) + 1; }
  uint64_t of(uint64_t key) const { return (key >> shift) & mask; }
};

// As few digits as possible, and of about equal width.
std::vector<Digit> split_into_digits(int low, int high) {
  std::vector<Digit> digits;
  const int passes = (high - low + kMaxDigitBits - 1) / kMaxDigitBits;
  for (int pass = passes; pass > 0; --pass) {
    const int bits = (high - low + pass - 1) / pass;
    digits.push_back({low, (uint64_t{1} << bits) - 1});
    low += bits;
  }
  return digits;
}

// Turns counts[chunk][bucket] into the place where each chunk writes its first key of each bucket.
void counts_to_positions(std::vector<uint32_t>& counts, int64_t chunks, int64_t buckets) {
  uint32_t position = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      position += std::exchange(counts[chunk * buckets + bucket], position);
    }
  }
}

void sort_by_digit(const uint64_t* from, uint64_t* to, int64_t count, Digit digit, int64_t chunks,
                   std::vector<uint32_t>& counts) {
  const int64_t buckets = digit.buckets();
  counts.assign(chunks * buckets, 0);
  const auto begin = [&](int64_t chunk) { return count * chunk / chunks; };
  for_each_task(chunks, chunks, [&](int64_t chunk) {
    uint32_t* const mine = counts.data() + chunk * buckets;
    for (int64_t i = begin(chunk), end = begin(chunk + 1); i < end; ++i) ++mine[digit.of(from[i])];
  });
  counts_to_positions(counts, chunks, buckets);
  for_each_task(chunks, chunks, [&](int64_t chunk) {
    uint32_t* const mine = counts.data() + chunk * buckets;
    for (int64_t i = begin(chunk), end = begin(chunk + 1); i < end; ++i) to[mine[digit.of(from[i])]++] = from[i];
  });
}

}  // namespace

uint64_t* radix_sort(uint64_t* keys, uint64_t* scratch, int64_t count, int low, int high, int64_t threads) {
  std::vector<uint32_t> counts;
  for (const Digit digit : split_into_digits(low, high)) {
    sort_by_digit(keys, scratch, count, digit, threads, counts);
    std::swap(keys, scratch);
  }
  return keys;
}

}  // namespace dlrm_mtl
