// Where the row of an id is among those of ascending ids.
#pragma once

#include "kernels.hpp"

namespace hfh {
namespace HFH_ISA {

// The place of an id among the exact rows, or -1.
inline int64_t exact_place(const Exact& exact, int64_t id) {
  const int64_t bucket = id >> exact.shift;
  if (static_cast<uint64_t>(bucket) >= static_cast<uint64_t>(exact.buckets)) return -1;
  int64_t low = exact.directory[bucket], high = exact.directory[bucket + 1];
  const auto at = [&](int64_t place) {
    return exact.wide ? static_cast<const int64_t*>(exact.ids)[place]
                      : static_cast<int64_t>(static_cast<const uint32_t*>(exact.ids)[place]);
  };
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (at(middle) < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < exact.count && at(low) == id ? low : -1;
}

}  // namespace HFH_ISA
}  // namespace hfh
