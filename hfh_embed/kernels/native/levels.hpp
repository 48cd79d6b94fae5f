// Exact rows in levels: which level an id is in, and its latent row.
//
// An index of codes is 64 bytes for every 256 ids of two bits, one cache line, of which fields are compared 32 at a time. Version 1 found
// a row and read it at once, and waited for the memory with each (2 M rows of 64 4-bit values in four levels, batches of 1,024: 211 ns a
// row); version 2 finds the rows of a block first, and asks for all of them (80 ns).
#pragma once

#include "exact.hpp"
#include "network.hpp"
#include "values.hpp"

namespace hfh {
namespace HFH_ISA {

struct LevelPlace {
  int level;  // -1: none
  int64_t place;
};

// How many of ``count`` codes from ``first`` on, which begins a byte, equal ``code``.
inline int64_t count_codes(Bytes codes, int bits, int64_t first, int64_t count, unsigned code) {
  const uint64_t lowest = bits == 1 ? ~uint64_t{0} : bits == 2 ? 0x5555555555555555u : 0x1111111111111111u;
  const uint64_t pattern = lowest * code;
  int64_t found = 0;
  for (int64_t done = 0, per_word = 64 / bits; done < count; done += per_word) {
    const int64_t at = (first + done) * bits / 8;
    uint64_t word = 0;
    std::memcpy(&word, codes.data + at, static_cast<size_t>(least(8, codes.size - at)));
    uint64_t differs = word ^ pattern;
    if (bits >= 2) differs |= differs >> 1;
    if (bits == 4) differs |= differs >> 2;
    uint64_t equal = ~differs & lowest;
    if (count - done < per_word) equal &= (uint64_t{1} << (count - done) * bits) - 1;
    found += __builtin_popcountll(equal);
  }
  return found;
}

// What stands in memory may change behind our back, so a place is compared with the level's rows before it is used.
inline LevelPlace level_place(const Levels& levels, int64_t num_embeddings, int64_t id) {
  if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_embeddings)) return {-1, 0};
  if (levels.index == LevelIndex::kCodes) {
    const int bits = levels.code_bits;
    const unsigned code = (levels.codes.data[id * bits / 8] >> (id * bits % 8)) & ((1u << bits) - 1);
    const int level = static_cast<int>(code) - levels.first_code;
    if (level < 0 || level >= levels.count) return {-1, 0};
    const int64_t block = id / kIndexBlock, begin = block * kIndexBlock;
    const int64_t place = levels.before[block * levels.count + level] + count_codes(levels.codes, bits, begin, id - begin, code);
    return place < levels.each[level].count ? LevelPlace{level, place} : LevelPlace{-1, 0};
  }
  int64_t first = 0;
  for (int level = 0; level < levels.count; ++level) {
    const Level& own = levels.each[level];
    if (levels.index == LevelIndex::kFirst) {
      if (id - first < own.count) return {level, id - first};
      first += own.count;
    } else if (const int64_t place = exact_place(own.ids, id); place >= 0) {
      return {level, place};
    }
  }
  return {-1, 0};
}

// Ask the memory for what finds an id, or for its row where nothing need be found.
inline void prefetch_level(const Levels& levels, int64_t num_embeddings, int64_t id) {
  if (levels.index == LevelIndex::kFirst) {
    const LevelPlace found = level_place(levels, num_embeddings, id);
    if (found.level >= 0) prefetch_row(levels.each[found.level].values, found.place);
  } else if (levels.index == LevelIndex::kCodes && static_cast<uint64_t>(id) < static_cast<uint64_t>(num_embeddings)) {
    prefetch(levels.codes.data + id * levels.code_bits / 8);
    prefetch(levels.before + id / kIndexBlock * levels.count);
  }
}

// The row at a place of a level into z (latent_dim), or added to it; ``own`` has room for the widest level's.
inline void put_level(const Levels& levels, LevelPlace found, int64_t latent_dim, float* own, float* z) {
  if (found.level < 0) return;
  const Level& level = levels.each[found.level];
  const Values& values = level.values;
  const Bytes row = row_of(values, found.place);
  const float scale = scale_of(values, found.place);
  if (level.map) {
    set_values(row, values.bits, 0, values.count, scale, own);
    matmul_rows<1>(own, 0, values.count, level.map, latent_dim, {levels.adds ? z : nullptr, 0}, z, 0);
  } else if (levels.adds) {
    add_values(row, values.bits, 0, values.count, scale, z);
  } else {
    set_values(row, values.bits, 0, values.count, scale, z);
  }
}

}  // namespace HFH_ISA
}  // namespace hfh
