// What finds the rows of some ids: checked when a table is made, and counted through at its first lookup, which reads all of it.
#pragma once

#include <algorithm>
#include <vector>

#include "binding.hpp"

namespace hfh {
namespace binding {
namespace {

// Ascending ids, as uint32 or int64.
inline void take_ids(hfh::Exact& exact, const nb::object& ids) {
  In<uint32_t, 1> narrow;
  Ids wide;
  if (nb::try_cast(ids, narrow, false)) {
    exact.ids = narrow.data(), exact.count = narrow.size(), exact.wide = false;
  } else {
    require(nb::try_cast(ids, wide, false), "exact ids must be uint32 or int64");
    exact.ids = wide.data(), exact.count = wide.size(), exact.wide = true;
  }
  require(reinterpret_cast<uintptr_t>(exact.ids) % (exact.wide ? 8 : 4) == 0, "exact ids are not aligned");
}

// About four ids a bucket, so that an id is found with one or two reads of memory.
inline void make_directory(hfh::Exact& exact, int64_t num_embeddings, std::vector<int64_t>& directory) {
  const auto at = [&](int64_t place) {
    return exact.wide ? static_cast<const int64_t*>(exact.ids)[place]
                      : static_cast<int64_t>(static_cast<const uint32_t*>(exact.ids)[place]);
  };
  const int64_t wanted = std::max<int64_t>(64, exact.count / 4);
  exact.shift = 0;
  while ((num_embeddings - 1) >> exact.shift >= wanted) ++exact.shift;
  exact.buckets = ((num_embeddings - 1) >> exact.shift) + 1;
  directory.assign(exact.buckets + 1, exact.count);
  int64_t place = 0;
  for (int64_t bucket = 0; bucket < exact.buckets; ++bucket) {
    while (place < exact.count && at(place) >> exact.shift < bucket) ++place;
    directory[bucket] = place;
  }
  exact.directory = directory.data();
}

// How many ids of each level lie before each block of codes.
inline void count_levels(hfh::Levels& levels, int64_t num_embeddings, std::vector<int64_t>& before) {
  const int bits = levels.code_bits, count = levels.count, mask = (1 << bits) - 1;
  before.assign((num_embeddings + kIndexBlock - 1) / kIndexBlock * count, 0);
  std::vector<int64_t> found(size_t{1} << bits, 0);
  for (int64_t id = 0; id < num_embeddings; ++id) {
    if (id % kIndexBlock == 0) std::copy_n(found.begin() + levels.first_code, count, before.begin() + id / kIndexBlock * count);
    ++found[levels.codes.data[id * bits / 8] >> (id * bits % 8) & mask];
  }
  levels.before = before.data();
}

}  // namespace
}  // namespace binding
}  // namespace hfh
