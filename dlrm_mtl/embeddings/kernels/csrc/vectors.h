// Short vectors of the instruction set that the including file is compiled for. Included by the row kernels only, each of
// which keeps it in a namespace of its own.
//
// Every operation is exact or correctly rounded, sums over columns always go through the same 16 lanes (see Lanes), and the
// compiler may not contract: so all instruction sets give the same bits.

using V4 = float __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__AVX512F__)
constexpr int kWidth = 16;
using V = float __attribute__((vector_size(64), aligned(4), may_alias));
using VBits = int32_t __attribute__((vector_size(64)));
#elif defined(__AVX2__)
constexpr int kWidth = 8;
using V = float __attribute__((vector_size(32), aligned(4), may_alias));
using VBits = int32_t __attribute__((vector_size(32)));
#else
constexpr int kWidth = 4;
using V = V4;
using VBits = int32_t __attribute__((vector_size(16)));
#endif
using V4Bits = int32_t __attribute__((vector_size(16)));

// A float16 in memory. All arithmetic is in float32.
struct Half {
  uint16_t bits;
};

#if !defined(__F16C__) && !defined(__aarch64__)
inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  uint32_t bits;
  float result;
  if (magnitude >= 0x7c00u) {  // infinite or not a number
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    if (magnitude > 0x7c00u) bits |= 0x400000u;
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // subnormal: magnitude * 2^-24, exact
    result = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    __builtin_memcpy(&bits, &result, 4);
    bits |= sign;
  }
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

// Rounds to nearest, ties to even.
inline Half to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u | (bits >> 13 & 0x3ffu);
  } else if (bits >= 0x47800000u) {  // 2^16 and more
    half = 0x7c00u;
  } else if (bits >= 0x38800000u) {  // a carry out of the mantissa is the right exponent, or infinity
    half = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  } else {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    float shifted;
    __builtin_memcpy(&shifted, &bits, 4);
    shifted += 0.5f;
    __builtin_memcpy(&half, &shifted, 4);
    half -= 0x3f000000u;
  }
  return {static_cast<uint16_t>(half | sign)};
}
#endif

template <class Vector>
inline Vector load(const float* from) {
  return *reinterpret_cast<const Vector*>(from);
}
template <class Vector>
inline void store(float* to, Vector value) {
  *reinterpret_cast<Vector*>(to) = value;
}

template <class Vector>
inline Vector load(const Half* from) {
  constexpr int width = sizeof(Vector) / sizeof(float);
#if defined(__AVX512F__)
  if constexpr (width == 16) {
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
#endif
#if defined(__F16C__)
  if constexpr (width == 8) {
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  } else if constexpr (width == 4) {
    return (Vector)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
#else
  Vector value;
#if defined(__aarch64__)
  for (int i = 0; i < width; ++i) value[i] = reinterpret_cast<const __fp16*>(from)[i];
#else
  for (int i = 0; i < width; ++i) value[i] = to_float(from[i]);
#endif
  return value;
#endif
}
template <class Vector>
inline void store(Half* to, Vector value) {
  constexpr int width = sizeof(Vector) / sizeof(float);
#if defined(__AVX512F__)
  if constexpr (width == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
#if defined(__F16C__)
  if constexpr (width == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
  } else if constexpr (width == 4) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_cvtps_ph((__m128)value, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__aarch64__)
  for (int i = 0; i < width; ++i) reinterpret_cast<__fp16*>(to)[i] = static_cast<__fp16>(value[i]);
#else
  for (int i = 0; i < width; ++i) to[i] = to_half(value[i]);
#endif
}

inline V absolute(V value) { return (V)((VBits)value & 0x7fffffff); }
#if defined(__AVX2__)
inline V4 absolute(V4 value) { return (V4)((V4Bits)value & 0x7fffffff); }
#endif

// Calls body(Vector{}, column) for every vector of a row, and with a vector of four columns for what is left.
template <class Body>
inline void for_columns(int64_t dim, Body&& body) {
  int64_t column = 0;
  for (; column + kWidth <= dim; column += kWidth) body(V{}, column);
  for (; column < dim; column += 4) body(V4{}, column);
}

// Calls body(vectors, Vector{}, column) for slabs of that many vectors, so that a slab's sums stay in registers.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class Body>
inline void for_slabs(int64_t dim, Body&& body) {
  int64_t column = 0;
  for (; column + 64 <= dim; column += 64) body(Count<64 / kWidth>{}, V{}, column);
  if (column + 32 <= dim) body(Count<32 / kWidth>{}, V{}, column), column += 32;
  if (column + 16 <= dim) body(Count<16 / kWidth>{}, V{}, column), column += 16;
  for (; column < dim; column += 4) body(Count<1>{}, V4{}, column);
}

// Sums over columns: column c goes to lane c % 16, and the lanes are added pairwise at the end.
struct Lanes {
  float lane[16] = {};

  float sum() {
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
  }
};
