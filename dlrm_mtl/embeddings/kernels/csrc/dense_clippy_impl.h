// The loops of dense Clippy, as part of row_kernels_impl.h. Numbers pass through the first-level cache in pieces, so that
// each half of a step reads memory once. Operations and their order are those of clippy_update in dlrm_mtl/optim/clippy.py.

// A piece, padded to whole vectors: its end is copied to buffers where zeros without effect follow.
template <bool writes, class Body>
inline void for_pieces(const DenseSpan& span, Body&& body) {
  const int64_t whole = span.size / 16 * 16, rest = span.size - whole;
  for (int64_t first = 0; first < whole; first += kRoots) {
    const int64_t count = first + kRoots < whole ? kRoots : whole - first;
    body(span.weights + first, span.gradients + first, span.accumulators + first, count);
  }
  if (!rest) return;
  float weights[16] = {}, gradients[16] = {}, accumulators[16];
  for (int64_t i = 0; i < 16; ++i) accumulators[i] = 1.0f;
  __builtin_memcpy(weights, span.weights + whole, rest * sizeof(float));
  __builtin_memcpy(gradients, span.gradients + whole, rest * sizeof(float));
  __builtin_memcpy(accumulators, span.accumulators + whole, rest * sizeof(float));
  body(weights, static_cast<const float*>(gradients), accumulators, int64_t{16});
  if constexpr (writes) {
    __builtin_memcpy(span.weights + whole, weights, rest * sizeof(float));
    __builtin_memcpy(span.accumulators + whole, accumulators, rest * sizeof(float));
  }
}

// a + g * g, rounded as by PyTorch's addcmul.
template <bool fused>
inline V add_square(V accumulator, V gradient) {
  if constexpr (!fused) return accumulator + gradient * gradient;
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)gradient, (__m512)gradient, (__m512)accumulator);
#elif defined(__AVX2__)
  return (V)_mm256_fmadd_ps((__m256)gradient, (__m256)gradient, (__m256)accumulator);
#else
  for (int k = 0; k < kWidth; ++k) accumulator[k] = __builtin_fmaf(gradient[k], gradient[k], accumulator[k]);
  return accumulator;
#endif
}

inline float largest_of(V values) {
  float result = 0;
  for (int k = 0; k < kWidth; ++k) result = values[k] > result ? values[k] : result;
  return result;
}

template <bool fused>
void measure_dense_of(const DenseSpan& span, DenseExtent* extent) {
  const DenseRule& rule = *span.rule;
  const float root_eps = rule.eps_inside ? 0.0f : rule.eps, square_eps = rule.eps_inside ? rule.eps : 0.0f;
  const bool nothing_absolute = rule.lambda_abs < __FLT_MIN__;
  float largest_ratio = 0, largest_direction = 0;
  VBits broken = {};
  for_pieces<false>(span, [&](const float* weights, const float* gradients, const float* accumulators, int64_t count) {
    float roots[kRoots], directions[kRoots];
    V largest = {};
    for (int64_t i = 0; i < count; i += kWidth) {
      const V accumulator = load<V>(accumulators + i), added = add_square<fused>(accumulator, load<V>(gradients + i));
      broken |= ~(absolute(added) <= V{} + __FLT_MAX__);
      store(roots + i, (rule.delayed ? accumulator : added) + square_eps);
    }
    take_roots(roots, count);
    for (int64_t i = 0; i < count; i += kWidth) {
      const V root = load<V>(roots + i) + root_eps, direction = absolute(load<V>(gradients + i) / root);
      store(roots + i, root);
      store(directions + i, direction);
      largest = direction > largest ? direction : largest;
    }
    const float here = largest_of(largest);
    largest_direction = here > largest_direction ? here : largest_direction;
    // No ratio exceeds max |r| / lambda_abs. The margin is for rounding: the factor is the same bit for bit.
    const float seen = read_shared(&extent->ratio);
    const double decisive = rule.lr * (seen > largest_ratio ? seen : largest_ratio);
    if (!nothing_absolute && rule.lr * here * (1 + 1e-6) <= (decisive > 1 ? decisive : 1.0) * rule.lambda_abs) return;
    V ratios = {};
    for (int64_t i = 0; i < count; i += kWidth) {
      const V direction = load<V>(directions + i);
      V allowed = absolute(load<V>(weights + i)) * rule.lambda_rel + rule.lambda_abs;
      if (rule.threshold != 0) allowed = allowed + (V{} + 1.0f) / load<V>(roots + i) * rule.threshold;
      const V ratio = direction == V{} ? V{} : direction / allowed;
      ratios = ratio > ratios ? ratio : ratios;
    }
    const float ratio = largest_of(ratios);
    largest_ratio = ratio > largest_ratio ? ratio : largest_ratio;
  });
  int32_t any = 0;
  for (int k = 0; k < kWidth; ++k) any |= broken[k];
  replace_if<true>(&extent->ratio, largest_ratio);
  replace_if<true>(&extent->direction, largest_direction);
  if (any) replace_if<true>(&extent->accumulator, __builtin_inff());
}

void measure_dense(const DenseSpan& span, DenseExtent* extent) {
  arithmetic.fused ? measure_dense_of<true>(span, extent) : measure_dense_of<false>(span, extent);
}

template <bool fused>
void apply_dense_of(const DenseSpan& span) {
  const DenseRule& rule = *span.rule;
  const float root_eps = rule.eps_inside ? 0.0f : rule.eps, square_eps = rule.eps_inside ? rule.eps : 0.0f;
  for_pieces<true>(span, [&](float* weights, const float* gradients, float* accumulators, int64_t count) {
    float roots[kRoots];
    for (int64_t i = 0; i < count; i += kWidth) {
      const V accumulator = load<V>(accumulators + i), g = load<V>(gradients + i);
      const V added = add_square<fused>(accumulator, g);
      store(roots + i, (rule.delayed ? accumulator : added) + square_eps);
      store(accumulators + i, rule.clip_accumulator ? accumulator + g * g * (span.factor * span.factor) : added);
    }
    take_roots(roots, count);
    for (int64_t i = 0; i < count; i += kWidth) {
      const V step = load<V>(gradients + i) * span.scale / (load<V>(roots + i) + root_eps);
      const V weight = load<V>(weights + i);
      store(weights + i, (rule.decay == 1.0f ? weight : weight * rule.decay) + step);
    }
  });
}

void apply_dense(const DenseSpan& span) { arithmetic.fused ? apply_dense_of<true>(span) : apply_dense_of<false>(span); }
