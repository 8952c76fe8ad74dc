// The generator and the loop over a part, compiled once for each instruction set into a namespace of its own.
//
// PyTorch draws numbers from MT19937 (Matsumoto and Nishimura, 1998) one by one, keeps 24 bits of each as a uniform number in
// [0, 1), and turns every 16 uniform numbers into 16 normal ones. The generator's state holds 624 = 39 * 16 numbers, so here
// it is advanced, tempered and transformed as a whole.
#include "initial_rows.h"

namespace dlrm_mtl {
namespace DLRM_MTL_ISA {
namespace {

constexpr int64_t kState = 624;
constexpr int64_t kMiddle = 397;
constexpr int64_t kGroup = 16;

struct MersenneTwister {
  alignas(64) uint32_t state[kState];

  explicit MersenneTwister(uint32_t seed) {
    state[0] = seed;
    for (int64_t i = 1; i < kState; ++i) {
      state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + static_cast<uint32_t>(i);
    }
  }

  static uint32_t twist(uint32_t middle, uint32_t high, uint32_t low) {
    return middle ^ (((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1) ^ (-(low & 1u) & 0x9908b0dfu);
  }

  // The numbers read by a step of these loops lie at least 227 numbers ahead of those that it writes, or one.
  void advance() {
#pragma GCC ivdep
    for (int64_t i = 0; i < kState - kMiddle; ++i) state[i] = twist(state[i + kMiddle], state[i], state[i + 1]);
#pragma GCC ivdep
    for (int64_t i = kState - kMiddle; i < kState - 1; ++i) {
      state[i] = twist(state[i + kMiddle - kState], state[i], state[i + 1]);
    }
    state[kState - 1] = twist(state[kMiddle - 1], state[kState - 1], state[0]);
  }

  void uniform(float* __restrict out) const {
    for (int64_t i = 0; i < kState; ++i) {
      uint32_t bits = state[i];
      bits ^= bits >> 11;
      bits ^= (bits << 7) & 0x9d2c5680u;
      bits ^= (bits << 15) & 0xefc60000u;
      bits ^= bits >> 18;
      out[i] = static_cast<float>(static_cast<int32_t>(bits & 0xffffffu)) * 0x1p-24f;
    }
  }
};

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// True if a row of the part has some of the numbers first to last - 1 of the block.
inline bool is_wanted(const InitialRows& part, int64_t first, int64_t last) {
  if (last <= part.row * part.columns || first >= (part.row + part.rows) * part.columns) return false;
  if (part.width == part.columns) return true;
  const int64_t begin = first / part.columns * part.columns + part.column;
  return first < begin + part.width ? last > begin : last > begin + part.columns;
}

// transform turns 16 uniform numbers into normal ones, in place.
template <class Transform>
void fill(const InitialRows& part, Transform&& transform) {
  MersenneTwister generator(static_cast<uint32_t>(part.seed));
  alignas(64) float values[kState];
  const int64_t first = part.row * part.columns, last = (part.row + part.rows) * part.columns;
  for (int64_t base = 0; base < last; base += kState) {
    generator.advance();
    if (base + kState <= first) continue;
    generator.uniform(values);
    for (int64_t at = 0; at < kState; at += kGroup) {
      if (is_wanted(part, base + at, base + at + kGroup)) transform(values + at);
    }
    const int64_t stop = smaller(base + kState, last);
    for (int64_t row = larger(base / part.columns, part.row); row * part.columns < stop; ++row) {
      const int64_t begin = row * part.columns + part.column;
      const int64_t from = larger(begin, base), to = smaller(begin + part.width, stop);
      float* const out = part.out + (row - part.row) * part.stride - begin;
      for (int64_t i = from; i < to; ++i) out[i] = values[i - base] * part.std;
    }
  }
}

}  // namespace
}  // namespace DLRM_MTL_ISA
}  // namespace dlrm_mtl
