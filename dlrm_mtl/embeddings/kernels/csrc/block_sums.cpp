// CRC-32 of blocks by carry-less multiplication, with the values of zlib's crc32().
//
// A block is a polynomial over GF(2), whose remainder by P is wanted, bits reflected. x^d of a part of 16 bytes may be replaced by
// its remainder, so parts are folded onto those 64, then 16 bytes behind them; 16 bytes are left, of which a table makes the sum.
// V. Gopal et al.: Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction. Intel, 2009.
#include <array>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dlrm_mtl {
namespace {

#if defined(__x86_64__)

constexpr uint32_t kPolynomial = 0xedb88320;  // P without x^32, reflected

constexpr uint32_t times_x(uint32_t value) { return (value >> 1) ^ (value & 1 ? kPolynomial : 0); }

// Remainder of x^power, as an operand of a product of reflected numbers, which comes out one bit too low.
constexpr int64_t remainder_of(int power) {
  uint32_t value = 0x80000000;  // x^0
  for (int i = 0; i < power; ++i) value = times_x(value);
  return static_cast<int64_t>(value) << 1;
}

constexpr std::array<uint32_t, 256> sums_of_bytes() {
  std::array<uint32_t, 256> sums{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int i = 0; i < 8; ++i) value = times_x(value);
    sums[byte] = value;
  }
  return sums;
}

constexpr auto kSumsOfBytes = sums_of_bytes();

inline uint32_t sum_by_table(uint32_t sum, const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum = kSumsOfBytes[(sum ^ bytes[i]) & 0xff] ^ (sum >> 8);
  return sum;
}

#define DLRM_MTL_CLMUL __attribute__((target("sse4.1,pclmul")))

DLRM_MTL_CLMUL inline __m128i load(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }

// `part` moved onto `next`, by the distance whose remainders are in `factors`.
DLRM_MTL_CLMUL inline __m128i fold(__m128i part, __m128i next, __m128i factors) {
  const __m128i low = _mm_clmulepi64_si128(part, factors, 0x00);
  const __m128i high = _mm_clmulepi64_si128(part, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

DLRM_MTL_CLMUL uint32_t block_sum(const uint8_t* bytes, int64_t size) {
  uint32_t sum = 0xffffffff;
  if (size >= 64) {
    // The lower half of a part is 64 bits farther from the end than its upper half.
    constexpr int64_t kFar64 = remainder_of(512 + 32), kNear64 = remainder_of(512 - 32);
    constexpr int64_t kFar16 = remainder_of(128 + 32), kNear16 = remainder_of(128 - 32);
    const __m128i by64 = _mm_set_epi64x(kNear64, kFar64), by16 = _mm_set_epi64x(kNear16, kFar16);
    __m128i a = _mm_xor_si128(load(bytes), _mm_cvtsi32_si128(static_cast<int>(sum)));
    __m128i b = load(bytes + 16), c = load(bytes + 32), d = load(bytes + 48);
    for (bytes += 64, size -= 64; size >= 64; bytes += 64, size -= 64) {
      a = fold(a, load(bytes), by64);
      b = fold(b, load(bytes + 16), by64);
      c = fold(c, load(bytes + 32), by64);
      d = fold(d, load(bytes + 48), by64);
    }
    a = fold(fold(fold(a, b, by16), c, by16), d, by16);
    alignas(16) uint8_t left[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(left), a);
    sum = sum_by_table(0, left, 16);
  }
  return ~sum_by_table(sum, bytes, size);
}

#endif

}  // namespace
}  // namespace dlrm_mtl

#define DLRM_MTL_API __attribute__((visibility("default")))

extern "C" {

// Number that changes with the meaning of the function below.
DLRM_MTL_API int64_t dlrm_mtl_block_sums_interface() { return 1; }

// CRC-32 of every `block` bytes of `bytes`, the last of which may be shorter. Returns false, without sums, if this processor has
// no carry-less multiplication.
DLRM_MTL_API bool dlrm_mtl_block_sums(const uint8_t* bytes, int64_t size, int64_t block, uint32_t* sums) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1")) return false;
  for (int64_t start = 0; start < size; start += block) {
    const int64_t left = size - start;
    *sums++ = dlrm_mtl::block_sum(bytes + start, left < block ? left : block);
  }
  return true;
#else
  return false;
#endif
}

}  // extern "C"
