// Rules with state per element, as part of row_kernels_impl.h. Each operation is that of the rule's function in Python
// (dlrm_mtl/embeddings/rules), in the same order and with PyTorch's square root, so that the bits agree.

constexpr int64_t kRoots = 1024;  // numbers whose roots are taken in one call

inline void take_roots(float* values, int64_t count) {
  if (arithmetic.roots) return arithmetic.roots(static_cast<int>(count), values, values, arithmetic.mode);
  for (int64_t i = 0; i < count; ++i) values[i] = __builtin_sqrtf(values[i]);
}

// One row's numbers, some columns of them.
template <class T>
struct RowPart {
  const float* gradients;
  float scale;
  T* weights;
  float* first;
  float* second;
  int64_t columns;
};

// Updates the states and writes what roots are taken of.
template <int64_t kind, class T>
inline void update_states(const ElementUpdate& rule, const RowPart<T>& row, float* after, float* before) {
  for_columns(row.columns, [&](auto zero, int64_t column) {
    using Vector = decltype(zero);
    const Vector g = load<Vector>(row.gradients + column) * row.scale;
    if constexpr (kind == ElementUpdate::kAdagrad) {
      const Vector squares = load<Vector>(row.first + column) + g * g;
      store(row.first + column, squares);
      store(after + column, squares);
    } else if constexpr (kind == ElementUpdate::kAdam) {
      const Vector squares = load<Vector>(row.second + column) * rule.second + g * g * rule.rest_of_second;
      store(row.first + column, load<Vector>(row.first + column) * rule.first + g * rule.rest_of_first);
      store(row.second + column, squares);
      store(after + column, squares / rule.second_correction);
    } else {
      const Vector old = load<Vector>(row.second + column), squares = old + g * g;
      store(row.second + column, squares);
      store(before + column, old);
      store(after + column, squares);
    }
  });
}

// Moves the weights, given the roots.
template <int64_t kind, class T>
inline void move_weights(const ElementUpdate& rule, float lr, const RowPart<T>& row, const float* after,
                         const float* before) {
  for_columns(row.columns, [&](auto zero, int64_t column) {
    using Vector = decltype(zero);
    const Vector w = load<Vector>(row.weights + column), root = load<Vector>(after + column);
    if constexpr (kind == ElementUpdate::kAdagrad) {
      const Vector g = load<Vector>(row.gradients + column) * row.scale;
      store(row.weights + column, w - (g / (root + rule.eps)) * lr);
    } else if constexpr (kind == ElementUpdate::kAdam) {
      const Vector moment = load<Vector>(row.first + column) / rule.first_correction;
      store(row.weights + column, w - (moment / (root + rule.eps)) * lr);
    } else {
      const Vector g = load<Vector>(row.gradients + column) * row.scale;
      const Vector linear = load<Vector>(row.first + column) + g - (root - load<Vector>(before + column)) / lr * w;
      const Vector sign = linear > zero ? zero + 1.0f : linear < zero ? zero - 1.0f : zero;
      const Vector moved = -(linear - sign * rule.l1) / ((root + rule.beta) / lr + rule.l2);
      const Vector kept = linear * sign <= zero + rule.l1 ? zero : moved;
      store(row.first + column, linear);
      store(row.weights + column, g == zero ? w : kept);
    }
  });
}

// Asks for a row's memory.
template <class T>
inline void prefetch_elements(const ElementSpan& span, int64_t u) {
  const int64_t dim = span.touched.dim, row = span.touched.touched->rows[u];
  prefetch(row_of<T>(span.touched.table, row, dim), dim * static_cast<int64_t>(sizeof(T)));
  prefetch(span.first + row * dim, dim * 4);
  if (span.second) prefetch(span.second + row * dim, dim * 4);
  prefetch(span.touched.touched->gradient(u), dim * 4);
}

template <int64_t kind, class T>
void apply_elements_of(const ElementSpan& span) {
  const TouchedRows& touched = *span.touched.touched;
  const int64_t dim = span.touched.dim, end = span.touched.last;
  const int64_t together = dim < kRoots ? kRoots / dim : 1;  // rows
  constexpr bool two = kind == ElementUpdate::kFtrl;
  float after[kRoots], before[two ? kRoots : 1];
  const auto ask_for = [&](int64_t begin) {
    for (int64_t u = begin; u < begin + together && u < end; ++u) prefetch_elements<T>(span, u);
  };
  ask_for(span.touched.first);
  for (int64_t begin = span.touched.first; begin < end; begin += together) {
    const int64_t rows = begin + together < end ? together : end - begin;
    ask_for(begin + together);
    for (int64_t column = 0; column < dim; column += kRoots) {
      const int64_t columns = column + kRoots < dim ? kRoots : dim - column;
      const auto part = [&](int64_t i) -> RowPart<T> {
        const int64_t u = begin + i, at = touched.rows[u] * dim + column;
        return {touched.gradient(u) + column, touched.scales ? touched.scales[u] : 1.0f,
                static_cast<T*>(span.touched.table) + at, span.first + at, span.second ? span.second + at : nullptr,
                columns};
      };
      for (int64_t i = 0; i < rows; ++i) update_states<kind>(*span.rule, part(i), after + i * dim, before + (two ? i * dim : 0));
      take_roots(after, rows * columns);
      if constexpr (two) take_roots(before, rows * columns);
      for (int64_t i = 0; i < rows; ++i) {
        move_weights<kind>(*span.rule, span.lr, part(i), after + i * dim, before + (two ? i * dim : 0));
      }
    }
  }
}

template <class T>
void apply_rowwise_adam(const ElementSpan& span) {
  const TouchedRows& touched = *span.touched.touched;
  const ElementUpdate& rule = *span.rule;
  const int64_t dim = span.touched.dim, first = span.touched.first, last = span.touched.last;
  const int64_t ahead = rows_ahead(dim * (4 + static_cast<int64_t>(sizeof(T))));
  float roots[kTouchedSpan];
  for (int64_t u = first; u < last; ++u) {
    if (u + kStatesAhead < last) __builtin_prefetch(span.touched.state + touched.rows[u + kStatesAhead]);
    float& squares = span.touched.state[touched.rows[u]];
    squares = squares * rule.second + touched.mean_squares[u] * rule.rest_of_second;
    roots[u - first] = squares / rule.second_correction;
  }
  take_roots(roots, last - first);
  for (int64_t u = first; u < first + ahead && u < last; ++u) prefetch_elements<T>(span, u);
  for (int64_t u = first; u < last; ++u) {
    if (u + ahead < last) prefetch_elements<T>(span, u + ahead);
    const float* const gradients = touched.gradient(u);
    const float scale = touched.scales ? touched.scales[u] : 1.0f, root = roots[u - first] + rule.eps;
    T* const weights = static_cast<T*>(span.touched.table) + touched.rows[u] * dim;
    float* const moments = span.first + touched.rows[u] * dim;
    for_columns(dim, [&](auto zero, int64_t column) {
      using Vector = decltype(zero);
      const Vector g = load<Vector>(gradients + column) * scale;
      const Vector moment = load<Vector>(moments + column) * rule.first + g * rule.rest_of_first;
      store(moments + column, moment);
      store(weights + column, load<Vector>(weights + column) - (moment / rule.first_correction / root) * span.lr);
    });
  }
}

template <class T>
void apply_elements_by_kind(const ElementSpan& span) {
  switch (span.rule->kind) {
    case ElementUpdate::kAdagrad: return apply_elements_of<ElementUpdate::kAdagrad, T>(span);
    case ElementUpdate::kAdam: return apply_elements_of<ElementUpdate::kAdam, T>(span);
    case ElementUpdate::kRowWiseAdam: return apply_rowwise_adam<T>(span);
    default: return apply_elements_of<ElementUpdate::kFtrl, T>(span);
  }
}

void apply_elements(const ElementSpan& span) {
  span.touched.half ? apply_elements_by_kind<Half>(span) : apply_elements_by_kind<float>(span);
}
