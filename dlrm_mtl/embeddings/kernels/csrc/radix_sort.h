// Stable least-significant-digit radix sort of 64-bit keys by a field of their bits.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

// Sorts keys[0, count) by bits [low, high). `scratch` has room for as many keys. Returns where the sorted keys are: `keys`
// or `scratch`. With more than one thread, all of them work on this one array.
uint64_t* radix_sort(uint64_t* keys, uint64_t* scratch, int64_t count, int low, int high, int64_t threads);

}  // namespace dlrm_mtl
