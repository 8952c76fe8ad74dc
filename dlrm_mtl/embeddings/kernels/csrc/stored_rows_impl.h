// Lookup of stored rows, see stored_rows.h. Included by row_kernels_impl.h, hence compiled for each instruction set.

// ---- the values of a stored row ----

// Rows of float32 or float16.
template <class T>
struct FloatRow {
  const T* values;

  explicit FloatRow(const uint8_t* row) : values(reinterpret_cast<const T*>(row)) {}
  template <class Vector>
  Vector vector(int64_t column) const {
    return load<Vector>(values + column);
  }
  float value(int64_t column) const {
    if constexpr (sizeof(T) == 4) {
      return values[column];
    } else {
#if defined(__F16C__)
      return _cvtsh_ss(values[column].bits);
#elif defined(__aarch64__)
      return reinterpret_cast<const __fp16*>(values)[column];
#else
      return to_float(values[column]);
#endif
    }
  }
};

inline float from_bfloat16(const uint8_t* bytes) {
  uint16_t half;
  __builtin_memcpy(&half, bytes, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Codes of 8 or 4 bits with a scale and an offset. A product of a code and a scale is exact.
template <int bits>
struct CodedRow {
  const uint8_t* codes;
  float scale;
  float offset;

  explicit CodedRow(const uint8_t* row) : codes(row + 4), scale(from_bfloat16(row)), offset(from_bfloat16(row + 2)) {}

  int code(int64_t column) const { return bits == 8 ? codes[column] : codes[column >> 1] >> (column & 1) * 4 & 15; }

  template <class Vector>
  Vector vector(int64_t column) const {
    constexpr int width = sizeof(Vector) / sizeof(float);
    return codes_of<width, Vector>(column) * scale + offset;
  }
  float value(int64_t column) const { return static_cast<float>(code(column)) * scale + offset; }

 private:
  template <int width, class Vector>
  Vector codes_of(int64_t column) const {
#if defined(__AVX512F__)
    if constexpr (width == 16) return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes<16>(column)));
#endif
#if defined(__AVX2__)
    if constexpr (width == 8) {
      return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes<8>(column)));
    } else if constexpr (width == 4) {
      return (Vector)_mm_cvtepi32_ps(_mm_cvtepu8_epi32(bytes<4>(column)));
    }
#else
    Vector found;
    for (int i = 0; i < width; ++i) found[i] = static_cast<float>(code(column + i));
    return found;
#endif
  }

#if defined(__AVX2__)
  // The codes of `width` columns, one in each byte.
  template <int width>
  __m128i bytes(int64_t column) const {
    if constexpr (bits == 8) return low_bytes<width>(codes + column);
    const __m128i pairs = low_bytes<width / 2>(codes + column / 2), low = _mm_set1_epi8(15);
    return _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
  }
  template <int count>
  static __m128i low_bytes(const uint8_t* from) {
    if constexpr (count == 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    uint64_t found = 0;
    __builtin_memcpy(&found, from, count);
    return _mm_cvtsi64_si128(static_cast<int64_t>(found));
  }
#endif
};

// ---- lookup ----

// About this many bytes of rows are asked for ahead of their use, by measurement: short rows from far beyond the caches need 64
// to 128 rows. Each row is asked for when another is added, because a burst of requests stalls the processor.
constexpr int64_t kStoredBytesAhead = 8192;

inline int64_t stored_rows_ahead(int64_t row_bytes) {
  const int64_t rows = kStoredBytesAhead / row_bytes;
  return rows < 4 ? 4 : rows > 128 ? 128 : rows;
}

inline void prefetch_row(const uint8_t* row, int64_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(row), last = first + bytes - 1;
  for (uintptr_t line = first & ~uintptr_t{kLine - 1}; line <= last; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
  }
}

template <class Row>
bool lookup_stored_rows(const StoredSpan& span, int64_t* wrong_id) {
  const int64_t dim = span.dim, row_bytes = span.row_bytes, whole = dim & ~int64_t{3};
  const int64_t ahead = stored_rows_ahead(row_bytes);
  const uint64_t rows = static_cast<uint64_t>(span.rows);
  const int64_t* const ids = span.ids;
  const auto row_at = [&](int64_t i) { return span.table + ids[i] * row_bytes; };
  int64_t asked = span.offsets[0];
  const auto ask = [&](int64_t last) {
    for (last = last < span.last ? last : span.last; asked < last; ++asked) prefetch_row(row_at(asked), row_bytes);
  };
  for (int64_t bag = 0; bag < span.bags; ++bag) {
    const int64_t first = span.offsets[bag], last = span.offsets[bag + 1];
    for (int64_t i = first; i < last; ++i) {
      if (static_cast<uint64_t>(ids[i]) >= rows) {
        *wrong_id = ids[i];
        return false;
      }
    }
    float* const out = span.out + bag * dim;
    for_slabs(whole, [&](auto count, auto zero, int64_t column) {
      using Vector = decltype(zero);
      constexpr int n = decltype(count)::value, width = sizeof(Vector) / sizeof(float);
      Vector sums[n] = {};
      for (int64_t i = first; i < last; ++i) {
        ask(i + ahead);
        const Row row(row_at(i));
        for (int k = 0; k < n; ++k) sums[k] += row.template vector<Vector>(column + k * width);
      }
      for (int k = 0; k < n; ++k) store(out + column + k * width, sums[k]);
    });
    for (int64_t column = whole; column < dim; ++column) {
      float sum = 0;
      for (int64_t i = first; i < last; ++i) sum += Row(row_at(i)).value(column);
      out[column] = sum;
    }
  }
  return true;
}

bool lookup_stored(const StoredSpan& span, int64_t* wrong_id) {
  switch (span.format) {
    case StoredFormat::kFloat32: return lookup_stored_rows<FloatRow<float>>(span, wrong_id);
    case StoredFormat::kFloat16: return lookup_stored_rows<FloatRow<Half>>(span, wrong_id);
    case StoredFormat::kInt8: return lookup_stored_rows<CodedRow<8>>(span, wrong_id);
    case StoredFormat::kInt4: return lookup_stored_rows<CodedRow<4>>(span, wrong_id);
  }
  return false;
}
