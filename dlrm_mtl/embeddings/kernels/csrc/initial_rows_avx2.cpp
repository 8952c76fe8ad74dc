// PyTorch's form of the Box-Muller transform on processors with AVX2, in the order of its operations.
//
// Logarithm, sine and cosine are those of avx_mathfun.h, which PyTorch includes, without what numbers in (0, 1] and [0, 2 pi]
// do not need. PyTorch's compiler joins products and sums to fused multiply-adds there; here they are written out. This is an
// altered version of:
//
//   AVX implementation of sin, cos, sincos, exp and log, based on "sse_mathfun.h" by Julien Pommier.
//   Copyright (C) 2012 Giovanni Garberoglio, Interdisciplinary Laboratory for Computational Science (LISC), Fondazione Bruno
//   Kessler and University of Trento, via Sommarive, 18, I-38123 Trento (Italy)
//
//   This software is provided 'as-is', without any express or implied warranty. In no event will the authors be held liable
//   for any damages arising from the use of this software.
//
//   Permission is granted to anyone to use this software for any purpose, including commercial applications, and to alter it
//   and redistribute it freely, subject to the following restrictions:
//
//   1. The origin of this software must not be misrepresented; you must not claim that you wrote the original software. If
//      you use this software in a product, an acknowledgment in the product documentation would be appreciated but is not
//      required.
//   2. Altered source versions must be plainly marked as such, and must not be misrepresented as being the original software.
//   3. This notice may not be removed or altered from any source distribution.
//
//   (this is the zlib license)
#if defined(__x86_64__)

#include <immintrin.h>

#define DLRM_MTL_ISA avx2
#include "initial_rows_impl.h"

namespace dlrm_mtl {
namespace {

inline __m256 all(float value) { return _mm256_set1_ps(value); }
inline __m256i all(int value) { return _mm256_set1_epi32(value); }

// Natural logarithm of numbers in [2^-24, 1].
inline __m256 logarithm(__m256 x) {
  const __m256i exponent = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(x), 23), all(0x7f));
  x = _mm256_or_ps(_mm256_and_ps(x, _mm256_castsi256_ps(all(~0x7f800000))), all(0.5f));
  const __m256 is_small = _mm256_cmp_ps(x, all(0.707106781186547524f), _CMP_LT_OS);
  const __m256 more = _mm256_and_ps(x, is_small);
  __m256 e = _mm256_add_ps(_mm256_cvtepi32_ps(exponent), all(1.0f));
  e = _mm256_sub_ps(e, _mm256_and_ps(all(1.0f), is_small));
  x = _mm256_add_ps(_mm256_sub_ps(x, all(1.0f)), more);
  const __m256 z = _mm256_mul_ps(x, x);
  __m256 y = all(7.0376836292e-2f);
  y = _mm256_fmadd_ps(y, x, all(-1.1514610310e-1f));
  y = _mm256_fmadd_ps(y, x, all(1.1676998740e-1f));
  y = _mm256_fmadd_ps(y, x, all(-1.2420140846e-1f));
  y = _mm256_fmadd_ps(y, x, all(1.4249322787e-1f));
  y = _mm256_fmadd_ps(y, x, all(-1.6668057665e-1f));
  y = _mm256_fmadd_ps(y, x, all(2.0000714765e-1f));
  y = _mm256_fmadd_ps(y, x, all(-2.4999993993e-1f));
  y = _mm256_fmadd_ps(y, x, all(3.3333331174e-1f));
  y = _mm256_fmadd_ps(_mm256_mul_ps(y, x), z, _mm256_mul_ps(e, all(-2.12194440e-4f)));
  y = _mm256_fnmadd_ps(z, all(0.5f), y);
  return _mm256_fmadd_ps(e, all(0.693359375f), _mm256_add_ps(x, y));
}

// Sine and cosine of numbers in [0, 2 pi].
inline void sine_and_cosine(__m256 x, __m256* sine, __m256* cosine) {
  const __m256i octant = _mm256_cvttps_epi32(_mm256_mul_ps(x, all(1.27323954473516f)));
  const __m256i even = _mm256_and_si256(_mm256_add_epi32(octant, all(1)), all(~1));
  const __m256 y = _mm256_cvtepi32_ps(even);
  const __m256 sign_of_sine = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(even, all(4)), 29));
  const __m256 swapped =
      _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(even, all(2)), _mm256_setzero_si256()));
  const __m256 sign_of_cosine = _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_andnot_si256(_mm256_sub_epi32(even, all(2)), all(4)), 29));
  x = _mm256_fmadd_ps(y, all(-0.78515625f), x);
  x = _mm256_fmadd_ps(y, all(-2.4187564849853515625e-4f), x);
  x = _mm256_fmadd_ps(y, all(-3.77489497744594108e-8f), x);
  const __m256 z = _mm256_mul_ps(x, x);
  __m256 c = _mm256_fmadd_ps(all(2.443315711809948e-5f), z, all(-1.388731625493765e-3f));
  c = _mm256_fmadd_ps(c, z, all(4.166664568298827e-2f));
  c = _mm256_fmsub_ps(_mm256_mul_ps(c, z), z, _mm256_mul_ps(z, all(0.5f)));
  c = _mm256_add_ps(c, all(1.0f));
  __m256 s = _mm256_fmadd_ps(all(-1.9515295891e-4f), z, all(8.3321608736e-3f));
  s = _mm256_fmadd_ps(s, z, all(-1.6666654611e-1f));
  s = _mm256_fmadd_ps(_mm256_mul_ps(s, z), x, x);
  *sine = _mm256_xor_ps(_mm256_blendv_ps(c, s, swapped), sign_of_sine);
  *cosine = _mm256_xor_ps(_mm256_blendv_ps(s, c, swapped), sign_of_cosine);
}

}  // namespace

void fill_initial_rows_avx2(const InitialRows& part) {
  avx2::fill(part, [](float* values) {
    const __m256 u1 = _mm256_sub_ps(all(1.0f), _mm256_load_ps(values));
    const __m256 theta = _mm256_mul_ps(all(static_cast<float>(2.0 * 3.14159265358979323846)), _mm256_load_ps(values + 8));
    const __m256 radius = _mm256_sqrt_ps(_mm256_mul_ps(all(-2.0f), logarithm(u1)));
    __m256 sine, cosine;
    sine_and_cosine(theta, &sine, &cosine);
    // PyTorch multiplies by a deviation of 1 and adds a mean of 0, which makes -0 a 0.
    _mm256_store_ps(values, _mm256_add_ps(_mm256_mul_ps(radius, cosine), _mm256_setzero_ps()));
    _mm256_store_ps(values + 8, _mm256_add_ps(_mm256_mul_ps(radius, sine), _mm256_setzero_ps()));
  });
}

}  // namespace dlrm_mtl

#endif
