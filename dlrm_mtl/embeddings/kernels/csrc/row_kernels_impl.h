// The row kernels, compiled once for each instruction set into a namespace of its own. Nothing of the standard library's
// templates here: the linker could keep a copy that was compiled for a newer processor and use it everywhere.
#include "arithmetic.h"
#include "row_kernels.h"

namespace dlrm_mtl {
namespace DLRM_MTL_ISA {
namespace {

#include "vectors.h"

// About this many bytes of rows are asked for ahead of their use: enough to keep the memory busy, too few to push each
// other out of the first-level cache.
constexpr int64_t kBytesAhead = 4096;
constexpr int64_t kStatesAhead = 32;
constexpr int64_t kLine = 64;

inline int64_t rows_ahead(int64_t row_bytes) {
  const int64_t rows = kBytesAhead / row_bytes;
  return rows < 2 ? 2 : rows > 32 ? 32 : rows;
}

inline void prefetch(const void* address, int64_t bytes) {
  const char* const begin = static_cast<const char*>(address);
  // GCC takes a function that only prefetches for one without effect, and drops calls of it that it has not inlined early.
  asm volatile("");
  for (int64_t line = 0; line < bytes; line += kLine) __builtin_prefetch(begin + line);
}

inline bool is_finite(float value) { return __builtin_fabsf(value) <= __FLT_MAX__; }

template <class T>
const T* row_of(const void* table, int64_t row, int64_t dim) {
  return static_cast<const T*>(table) + row * dim;
}

// ---- lookup ----

template <class T, bool weighted>
bool lookup_rows(const LookupSpan& span, int64_t* wrong_id) {
  const int64_t dim = span.dim, row_bytes = dim * static_cast<int64_t>(sizeof(T)), ahead = rows_ahead(row_bytes);
  const uint64_t rows = static_cast<uint64_t>(span.rows);
  const int64_t* const ids = span.ids;
  for (int64_t i = span.offsets[0]; i < span.offsets[0] + ahead && i < span.last; ++i) {
    prefetch(row_of<T>(span.table, ids[i], dim), row_bytes);
  }
  for (int64_t bag = 0; bag < span.bags; ++bag) {
    const int64_t first = span.offsets[bag], last = span.offsets[bag + 1];
    for (int64_t i = first; i < last; ++i) {
      if (static_cast<uint64_t>(ids[i]) >= rows) {
        *wrong_id = ids[i];
        return false;
      }
      if (i + ahead < span.last) prefetch(row_of<T>(span.table, ids[i + ahead], dim), row_bytes);
    }
    float* const out = span.out + bag * span.out_stride;
    for_slabs(dim, [&](auto count, auto zero, int64_t column) {
      using Vector = decltype(zero);
      constexpr int n = decltype(count)::value, width = sizeof(Vector) / sizeof(float);
      Vector sums[n] = {};
      for (int64_t i = first; i < last; ++i) {
        const T* const row = row_of<T>(span.table, ids[i], dim) + column;
        for (int k = 0; k < n; ++k) {
          if constexpr (weighted) {
            sums[k] += load<Vector>(row + k * width) * span.bag_weights[i];
          } else {
            sums[k] += load<Vector>(row + k * width);
          }
        }
      }
      if (span.mean && last - first > 1) {
        for (int k = 0; k < n; ++k) sums[k] /= static_cast<float>(last - first);
      }
      for (int k = 0; k < n; ++k) store(out + column + k * width, sums[k]);
    });
  }
  return true;
}

bool lookup(const LookupSpan& span, int64_t* wrong_id) {
  if (span.half) {
    return span.bag_weights ? lookup_rows<Half, true>(span, wrong_id) : lookup_rows<Half, false>(span, wrong_id);
  }
  return span.bag_weights ? lookup_rows<float, true>(span, wrong_id) : lookup_rows<float, false>(span, wrong_id);
}

#include "stored_rows_impl.h"

// ---- gradients of rows ----

// Sum of squares and largest absolute value of one row; of its quotient by `scale`, if divided.
template <bool copy, bool scaled, bool divided = false>
inline void measure_row(const float* from, float* to, int64_t dim, float scale, float* square, float* maximum) {
  V squares[16 / kWidth] = {}, maxima = {};
  Lanes lanes;
  float largest = 0;
  int64_t column = 0;
  for (; column + 16 <= dim; column += 16) {
    for (int k = 0; k < 16 / kWidth; ++k) {
      V value = load<V>(from + column + k * kWidth);
      if constexpr (divided) value /= scale;
      if constexpr (copy) store(to + column + k * kWidth, value);
      const V magnitude = absolute(value);
      maxima = magnitude > maxima ? magnitude : maxima;
      const V used = scaled ? value * scale : value;
      squares[k] += used * used;
    }
  }
  for (int k = 0; k < 16 / kWidth; ++k) store(lanes.lane + k * kWidth, squares[k]);
  for (int64_t tail = 0; column + tail < dim; ++tail) {
    const float value = divided ? from[column + tail] / scale : from[column + tail];
    if constexpr (copy) to[column + tail] = value;
    const float magnitude = __builtin_fabsf(value), used = scaled ? value * scale : value;
    largest = magnitude > largest ? magnitude : largest;
    lanes.lane[tail] += used * used;
  }
  for (int k = 0; k < kWidth; ++k) largest = maxima[k] > largest ? maxima[k] : largest;
  *square = lanes.sum();
  *maximum = largest;
}

void copy_bags(const BagSpan& span) {
  const int64_t ahead = rows_ahead(span.dim * 4);
  for (int64_t bag = 0; bag < span.bags; ++bag) {
    const int64_t ids = span.offsets[bag + 1] - span.offsets[bag];
    if (ids == 0) continue;
    if (bag + ahead < span.bags) prefetch(span.gradient + (bag + ahead) * span.stride, span.dim * 4);
    const auto measure = span.mean && ids > 1 ? measure_row<true, false, true> : measure_row<true, false, false>;
    measure(span.gradient + bag * span.stride, span.values + bag * span.dim, span.dim, static_cast<float>(ids),
            span.squares + bag, span.maxima + bag);
  }
}

void measure(const float* rows, int64_t dim, int64_t count, float* squares, float* maxima) {
  for (int64_t i = 0; i < count; ++i) {
    measure_row<false, false>(rows + i * dim, nullptr, dim, 1.0f, squares + i, maxima + i);
  }
}

// Adds the columns of one slab over the occurrences [first, last) of one row, in their order.
template <class Vector, int n, bool weighted>
inline void sum_slab(const SortedKeys& sorted, int64_t first, int64_t last, int64_t column, float* out) {
  constexpr int width = sizeof(Vector) / sizeof(float);
  Vector sums[n] = {};
  for (int64_t i = first; i < last; ++i) {
    const uint64_t payload = sorted.payload(i);
    const float* const from = sorted.values + sorted.source(payload) + column;
    for (int k = 0; k < n; ++k) {
      if constexpr (weighted) {
        sums[k] += load<Vector>(from + k * width) * sorted.bag_weights[payload];
      } else {
        sums[k] += load<Vector>(from + k * width);
      }
    }
  }
  for (int k = 0; k < n; ++k) store(out + column + k * width, sums[k]);
}

template <bool weighted>
inline void sum_occurrences(const SortedKeys& sorted, int64_t first, int64_t last, float* out) {
  for_slabs(sorted.dim, [&](auto count, auto zero, int64_t column) {
    sum_slab<decltype(zero), decltype(count)::value, weighted>(sorted, first, last, column, out);
  });
}

// One slab of a row whose columns are spread over threads: the columns from `column` to the next multiple of kSlab.
void sum_long_run(const SortedKeys& sorted, const LongRun& run, int64_t column, float* out) {
  const auto add = [&](auto count, auto zero, int64_t inner) {
    if (sorted.bag_weights) {
      sum_slab<decltype(zero), decltype(count)::value, true>(sorted, run.first, run.last, column + inner, out);
    } else {
      sum_slab<decltype(zero), decltype(count)::value, false>(sorted, run.first, run.last, column + inner, out);
    }
  };
  for_slabs(sorted.dim - column < kSlab ? sorted.dim - column : kSlab, add);
}

// A row that occurs once: its gradient stays where it is.
template <bool weighted>
inline void refer_to(const RunSpan& span, int64_t i, int64_t touched) {
  const SortedKeys& sorted = span.sorted;
  const uint64_t payload = sorted.payload(i);
  const int64_t source = span.sources[touched] = sorted.source(payload);
  if constexpr (weighted) {
    const float scale = span.scales[touched] = sorted.bag_weights[payload];
    measure_row<false, true>(sorted.values + source, nullptr, sorted.dim, scale, span.squares + touched,
                             span.maxima + touched);
  } else {
    span.squares[touched] = sorted.squares[payload];
    span.maxima[touched] = sorted.maxima[payload];
  }
}

// A row that occurs at [first, last): its gradients are added up at `sum`, now or, if there are very many, later.
template <bool weighted>
inline void add_up(const RunSpan& span, int64_t first, int64_t last, int64_t touched, int64_t sum) {
  span.sources[touched] = ~sum;
  if constexpr (weighted) span.scales[touched] = 1.0f;
  if (last - first > kLongRun) {
    span.long_runs[__atomic_fetch_add(span.long_run_count, 1, __ATOMIC_RELAXED)] = {span.table, first, last, touched};
    return;
  }
  sum_occurrences<weighted>(span.sorted, first, last, span.sums + sum);
  measure_row<false, false>(span.sums + sum, nullptr, span.sorted.dim, 1.0f, span.squares + touched,
                            span.maxima + touched);
}

template <bool weighted>
void sum_runs_of(const RunSpan& span) {
  const SortedKeys& sorted = span.sorted;
  const int64_t ahead = rows_ahead(sorted.dim * 4);
  int64_t touched = span.touched, sum = span.sum, i = span.first, asked = span.first;
  const auto prefetch_until = [&](int64_t end) {
    for (; asked < end && asked < sorted.count; ++asked) {
      const bool alone = (asked == 0 || sorted.row(asked) != sorted.row(asked - 1)) &&
                         (asked + 1 == sorted.count || sorted.row(asked) != sorted.row(asked + 1));
      if (weighted || !alone) prefetch(sorted.values + sorted.source(sorted.payload(asked)), sorted.dim * 4);
    }
  };
  while (i > 0 && i < span.last && sorted.row(i) == sorted.row(i - 1)) ++i;  // belongs to the span before
  for (int64_t end; i < span.last; i = end, ++touched) {
    const uint64_t row = sorted.row(i);
    for (end = i + 1; end < sorted.count && sorted.row(end) == row;) ++end;
    prefetch_until((end - i > kLongRun ? i : end) + ahead);
    span.rows[touched] = static_cast<int64_t>(row);
    if (end == i + 1) {
      refer_to<weighted>(span, i, touched);
    } else {
      add_up<weighted>(span, i, end, touched, sum);
      sum += sorted.dim;
    }
  }
}

void sum_runs(const RunSpan& span) { span.sorted.bag_weights ? sum_runs_of<true>(span) : sum_runs_of<false>(span); }

void expand(const TouchedSpan& span, float* out) {
  const TouchedRows& touched = *span.touched;
  for (int64_t u = span.first; u < span.last; ++u, out += span.dim) {
    const float* const from = touched.gradient(u);
    for_columns(span.dim, [&](auto zero, int64_t column) {
      using Vector = decltype(zero);
      const Vector value = load<Vector>(from + column);
      store(out + column, touched.scales ? value * touched.scales[u] : value);
    });
  }
}

// ---- the rule ----

// What a row's gradient is divided by.
inline float root_of(const TouchedSpan& span, int64_t u) {
  const Update& rule = *span.rule;
  if (rule.kind == Update::kSgd) return 1.0f;
  const float state = span.state[span.touched->rows[u]];
  const float denominator = rule.delayed ? state : state + span.touched->mean_squares[u];
  return rule.eps_inside ? __builtin_sqrtf(denominator + rule.eps) : __builtin_sqrtf(denominator) + rule.eps;
}

// A row's factor if all of its weights were 0 and all of its gradients the largest one. The true factor cannot be smaller,
// after rounding either: each step of its computation is monotone. So most rows need not be read at all.
inline float factor_bound(const Update& rule, float maximum, float scale, float root) {
  if (maximum * scale == 0) return 1.0f;
  const float move = rule.lr * (maximum * scale / root);
  return move > rule.lambda_abs ? rule.lambda_abs / move : 1.0f;
}

// The largest factor in [0, 1] at which no coordinate of the row moves too far.
template <class T>
float factor_of_row(const Update& rule, const T* weights, const float* gradient, int64_t dim, float scale, float root) {
  V smallest = V{} + 1.0f;
  V4 smallest_of_tail = V4{} + 1.0f;
  for_columns(dim, [&](auto zero, int64_t column) {
    using Vector = decltype(zero);
    const Vector one = zero + 1.0f;
    const Vector direction = absolute(load<Vector>(gradient + column)) * scale / root;
    const Vector move = direction * rule.lr;
    const Vector allowed = absolute(load<Vector>(weights + column)) * rule.lambda_rel + rule.lambda_abs;
    const Vector factor = move > allowed ? allowed / move : one;
    if constexpr (sizeof(Vector) == sizeof(V)) {
      smallest = factor < smallest ? factor : smallest;
    } else {
      smallest_of_tail = factor < smallest_of_tail ? factor : smallest_of_tail;
    }
  });
  float result = 1.0f;
  for (int k = 0; k < kWidth; ++k) result = smallest[k] < result ? smallest[k] : result;
  for (int k = 0; k < 4; ++k) result = smallest_of_tail[k] < result ? smallest_of_tail[k] : result;
  return result;
}

// Whether the row's factor can be below `limit`: the same without divisions, which would take longer than reading the row, and
// with some slack for rounding.
template <class T>
inline bool may_be_below(float limit, const Update& rule, const T* weights, const float* gradient, int64_t dim, float scale,
                         float root) {
  constexpr float slack = 1.0f + 1e-5f;
  const float quotient = rule.lr * scale / root * limit * slack;
  if (!(quotient >= __FLT_MIN__ && quotient <= __FLT_MAX__)) return true;
  VBits below = {};
  V4Bits below_in_tail = {};
  for_columns(dim, [&](auto zero, int64_t column) {
    using Vector = decltype(zero);
    const auto found = absolute(load<Vector>(gradient + column)) * quotient >
                       absolute(load<Vector>(weights + column)) * rule.lambda_rel + rule.lambda_abs;
    if constexpr (sizeof(Vector) == sizeof(V)) {
      below |= found;
    } else {
      below_in_tail |= found;
    }
  });
  int32_t any = 0;
  for (int k = 0; k < kWidth; ++k) any |= below[k];
  for (int k = 0; k < 4; ++k) any |= below_in_tail[k];
  return any != 0;
}

inline float absolute_scale(const TouchedRows& touched, int64_t u) {
  return touched.scales ? __builtin_fabsf(touched.scales[u]) : 1.0f;
}

// The factor of a touched row if it is below `limit`, else `limit`. Its weights are read only if need be.
template <class T>
inline float factor_of_touched(const TouchedSpan& span, int64_t u, float root, float limit) {
  const TouchedRows& touched = *span.touched;
  const Update& rule = *span.rule;
  const float scale = absolute_scale(touched, u);
  if (factor_bound(rule, touched.maxima[u], scale, root) >= limit) return limit;
  const T* const weights = row_of<T>(span.table, touched.rows[u], span.dim);
  const float* const gradient = touched.gradient(u);
  if (!may_be_below(limit, rule, weights, gradient, span.dim, scale, root)) return limit;
  const float factor = factor_of_row(rule, weights, gradient, span.dim, scale, root);
  return factor < limit ? factor : limit;
}

// Puts `value` in place of a number that other threads change as well, if it is smaller (or larger). Bits of floats that are
// not negative are ordered as the floats are; kNonFinite is below all of them.
template <bool larger>
inline void replace_if(float* shared, float value) {
  int32_t bits, seen = __atomic_load_n(reinterpret_cast<int32_t*>(shared), __ATOMIC_RELAXED);
  __builtin_memcpy(&bits, &value, 4);
  while ((larger ? bits > seen : bits < seen) &&
         !__atomic_compare_exchange_n(reinterpret_cast<int32_t*>(shared), &seen, bits, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
}

inline void lower(float* shared, float value) { replace_if<false>(shared, value); }

inline float read_shared(float* shared) {
  const int32_t bits = __atomic_load_n(reinterpret_cast<int32_t*>(shared), __ATOMIC_RELAXED);
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Fills the bounds and roots of a span's rows and returns which has the lowest bound, or -1 if a mean square is not finite.
int64_t bound_factors(const TouchedSpan& span, float* bounds, float* roots) {
  const TouchedRows& touched = *span.touched;
  const Update& rule = *span.rule;
  int64_t lowest = span.first;
  bool finite = true;
  for (int64_t u = span.first; u < span.last; ++u) {
    finite &= is_finite(touched.mean_squares[u]);
    if (rule.kind != Update::kClippy || rule.per_row) continue;
    if (u + kStatesAhead < span.last) __builtin_prefetch(span.state + touched.rows[u + kStatesAhead]);
    roots[u - span.first] = root_of(span, u);
    bounds[u - span.first] = factor_bound(rule, touched.maxima[u], absolute_scale(touched, u), roots[u - span.first]);
    if (bounds[u - span.first] < bounds[lowest - span.first]) lowest = u;
  }
  return finite ? lowest : -1;
}

template <class T>
void find_factor_of(const TouchedSpan& span, float* factor) {
  const TouchedRows& touched = *span.touched;
  const Update& rule = *span.rule;
  float bounds[kTouchedSpan], roots[kTouchedSpan];
  const int64_t lowest = bound_factors(span, bounds, roots);
  if (lowest < 0) lower(factor, kNonFinite);
  if (lowest < 0 || rule.kind != Update::kClippy || rule.per_row) return;
  const auto of_row = [&](int64_t u, float limit) { return factor_of_touched<T>(span, u, roots[u - span.first], limit); };
  float smallest = of_row(lowest, read_shared(factor));
  int32_t candidates[kTouchedSpan];
  int64_t count = 0;
  for (int64_t u = span.first; u < span.last; ++u) {
    candidates[count] = static_cast<int32_t>(u - span.first);
    count += bounds[u - span.first] < smallest && u != lowest;
  }
  const int64_t row_bytes = span.dim * static_cast<int64_t>(sizeof(T)), ahead = rows_ahead(row_bytes + span.dim * 4);
  for (int64_t i = 0; i < count; ++i) {
    if (i + ahead < count) {
      const int64_t next = span.first + candidates[i + ahead];
      prefetch(row_of<T>(span.table, touched.rows[next], span.dim), row_bytes);
      prefetch(touched.gradient(next), span.dim * 4);
    }
    smallest = of_row(span.first + candidates[i], smallest);
  }
  lower(factor, smallest);
}

void find_factor(const TouchedSpan& span, float* factor) {
  span.half ? find_factor_of<Half>(span, factor) : find_factor_of<float>(span, factor);
}

template <class T>
void row_factors_of(const TouchedSpan& span, float* factors) {
  for (int64_t u = span.first; u < span.last; ++u) factors[u] = factor_of_touched<T>(span, u, root_of(span, u), 1.0f);
}

void row_factors(const TouchedSpan& span, float* factors) {
  span.half ? row_factors_of<Half>(span, factors) : row_factors_of<float>(span, factors);
}

template <class T>
float largest_direction_of(const TouchedSpan& span) {
  const bool per_row = span.rule->kind == Update::kClippy && span.rule->per_row;
  float largest = 0;
  for (int64_t u = span.first; u < span.last; ++u) {
    const float root = root_of(span, u), gradient = span.touched->maxima[u] * absolute_scale(*span.touched, u);
    const float direction = gradient == 0 ? 0.0f : gradient / root;
    const float moved = per_row ? direction * factor_of_touched<T>(span, u, root, 1.0f) : direction;
    largest = moved > largest ? moved : largest;
  }
  return largest;
}

void find_largest_direction(const TouchedSpan& span, float* largest) {
  replace_if<true>(largest, span.half ? largest_direction_of<Half>(span) : largest_direction_of<float>(span));
}

// w <- w - step * (g / root). The quotient is taken for every coordinate, as the reference does, so that the bits agree: the
// loop waits for memory anyhow.
template <class T>
inline void move_row(T* weights, const float* gradient, int64_t dim, float step, float scale, float root) {
  for_columns(dim, [&](auto zero, int64_t column) {
    using Vector = decltype(zero);
    const Vector value = load<Vector>(gradient + column) * scale;
    const Vector direction = value == zero ? zero : value / root;
    store(weights + column, load<Vector>(weights + column) - direction * step);
  });
}

template <class T>
void apply_to(const TouchedSpan& span, float factor) {
  const TouchedRows& touched = *span.touched;
  const Update& rule = *span.rule;
  const int64_t dim = span.dim, row_bytes = dim * static_cast<int64_t>(sizeof(T)), ahead = rows_ahead(row_bytes);
  const bool has_state = rule.kind != Update::kSgd, per_row = rule.kind == Update::kClippy && rule.per_row;
  const auto prefetch_row = [&](int64_t u) {
    prefetch(row_of<T>(span.table, touched.rows[u], dim), row_bytes);
    prefetch(touched.gradient(u), dim * 4);
  };
  for (int64_t u = span.first; u < span.first + ahead && u < span.last; ++u) prefetch_row(u);
  for (int64_t u = span.first; u < span.last; ++u) {
    if (u + ahead < span.last) prefetch_row(u + ahead);
    if (has_state && u + kStatesAhead < span.last) __builtin_prefetch(span.state + touched.rows[u + kStatesAhead]);
    const float* const gradient = touched.gradient(u);
    T* const weights = const_cast<T*>(row_of<T>(span.table, touched.rows[u], dim));
    const float scale = touched.scales ? touched.scales[u] : 1.0f;
    const float root = root_of(span, u);
    if (has_state) span.state[touched.rows[u]] += touched.mean_squares[u];
    if (per_row) factor = factor_of_touched<T>(span, u, root, 1.0f);
    move_row(weights, gradient, dim, rule.lr * factor, scale, root);
  }
}

void apply(const TouchedSpan& span, float factor) {
  span.half ? apply_to<Half>(span, factor) : apply_to<float>(span, factor);
}

#include "element_rules_impl.h"
#include "dense_clippy_impl.h"

}  // namespace
}  // namespace DLRM_MTL_ISA

const RowKernels DLRM_MTL_KERNELS = {
    DLRM_MTL_NAME, DLRM_MTL_ISA::lookup,       DLRM_MTL_ISA::copy_bags,   DLRM_MTL_ISA::measure,
    DLRM_MTL_ISA::sum_runs,      DLRM_MTL_ISA::sum_long_run, DLRM_MTL_ISA::find_factor, DLRM_MTL_ISA::apply,
    DLRM_MTL_ISA::row_factors,   DLRM_MTL_ISA::find_largest_direction, DLRM_MTL_ISA::expand,
    DLRM_MTL_ISA::lookup_stored, DLRM_MTL_ISA::apply_elements, DLRM_MTL_ISA::measure_dense,
    DLRM_MTL_ISA::apply_dense,
};

}  // namespace dlrm_mtl
