// Bags: one row for each bag of ids.
//
// Version 1, block_bags: rows of a block, then added: 20 ns a row of 64. Version 2, line_bags, for plain rows of one 64-slot word
// a hash function (or one of 32): what is added is in how many words each entry's bit is set, a byte an entry, and becomes floats once a bag:
// 8 ns in bags of five (10 for means, 11.5 weighted). The sum is exact before its one product, so nothing is lost by it. Version
// 3, here: bags of one id are rows; counts become floats where the bag is wanted; a weight is multiplied into the nine values that
// an entry can have, not into the entries, and a bag's sum begins where it is wanted.
#pragma once

#include "rows.hpp"

namespace hfh {
namespace HFH_ISA {

inline void write_row(const float* row, int64_t dim, bool half, void* out, int64_t place) {
  if (half) return to_half(row, dim, static_cast<uint16_t*>(out) + place * dim);
  std::memcpy(static_cast<float*>(out) + place * dim, row, static_cast<size_t>(dim) * 4);
}

inline void block_bags(const Table& t, const int64_t* ids, const int64_t* bounds, int64_t count, const float* weights, Mode mode,
                       void* out, bool half, float* scratch) {
  const int64_t dim = t.embedding_dim, end = bounds[count];
  float *block = scratch, *sum = block + kBlockRows * dim;
  int64_t at = bounds[0], block_begin = at, ready = at;  // the id to add next; the ids whose rows lie in the block
  RowStream stream(t, ids + at, end - at, sum + dim);
  for (int64_t b = 0; b < count; ++b) {
    int64_t members = 0;
    std::memset(sum, 0, static_cast<size_t>(dim) * 4);
    for (; at < bounds[b + 1]; ++at) {
      if (at == ready) {
        block_begin = at;
        ready += least(kBlockRows, end - at);
        stream.take(ready - at, block, dim);
      }
      if (ids[at] == t.padding_id) continue;
      const float* row = block + (at - block_begin) * dim;
      ++members;
      if (mode == Mode::kMax) {
        for (int64_t j = 0; j < dim; ++j) sum[j] = members == 1 || row[j] > sum[j] ? row[j] : sum[j];
      } else if (weights) {
        for (int64_t j = 0; j < dim; ++j) sum[j] += row[j] * weights[at];
      } else {
        for (int64_t j = 0; j < dim; ++j) sum[j] += row[j];
      }
    }
    if (mode == Mode::kMean && members > 1) {
      const float counted = static_cast<float>(members);
      for (int64_t j = 0; j < dim; ++j) sum[j] /= counted;
    }
    write_row(sum, dim, half, out, b);
  }
}

// counts[j] += in how many words entry j's bit is set, for 64 entries of ``rows`` rows whose planes lie side by side.
inline void add_counts(const uint64_t* plane, int64_t rows, uint8_t* counts) {
#if defined(__AVX512BW__)
  __m512i sum = _mm512_load_si512(counts);
  for (int64_t r = 0; r < rows; ++r) sum = _mm512_add_epi8(sum, HFH_ISA::counts(plane + r, kGroup));
  _mm512_store_si512(counts, sum);
#elif defined(__AVX2__)
  for (int j = 0; j < 64; j += 32) {
    __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(counts + j));
    for (int64_t r = 0; r < rows; ++r) sum = _mm256_sub_epi8(sum, minus_counts(plane + r, kGroup, j));
    _mm256_store_si256(reinterpret_cast<__m256i*>(counts + j), sum);
  }
#else
  for (int64_t r = 0; r < rows; ++r) {
    for (int j = 0; j < 64; ++j) counts[j] = static_cast<uint8_t>(counts[j] + count_of(plane + r, kGroup, j));
  }
#endif
}

// sum[j] += weight * entry j of one row of 64, or of 32 that are counted in two places; the product is rounded first. Without
// ``more``, what lay in sum does not count.
inline void add_weighed(const uint64_t* plane, float weight, const Palette& palette, bool more, float* sum) {
#if defined(__AVX512BW__)
  const __m512 by = _mm512_set1_ps(weight), values = _mm512_mul_ps(_mm512_load_ps(palette.wide), by);
  const auto add = [&](int s, __m512 row) { store(sum + 16 * s, (more ? load(sum + 16 * s) : Vec{}) + (Vec)row); };
  if (palette.folded()) {
    look_up_folded(plane, kGroup, values, _mm512_mul_ps(_mm512_load_ps(palette.wide + 16), by), add);
  } else {
    look_up(plane, kGroup, values, add);
  }
#else
  const int64_t entries = palette.folded() ? 32 : 64;
  alignas(64) float row[64];
  palette.folded() ? widen<false, true>(plane, kGroup, entries, palette, row) : widen<false, false>(plane, kGroup, entries, palette, row);
  for (int64_t j = 0; j < entries; ++j) sum[j] = (more ? sum[j] : 0.0f) + row[j] * weight;
#endif
}

// Bags of rows of one line of words of kEntries slots, 64 or 32.
template <int kEntries>
inline void line_bags(const Table& t, const int64_t* ids, const int64_t* bounds, int64_t count, const float* weights, Mode mode,
                      void* out, bool half) {
  constexpr int64_t kMostCounted = 31 - kGroup;  // rows whose counts, at most 8 each, fit a byte with another group's
  const int64_t dim = t.embedding_dim, begin = bounds[0], end = bounds[count];
  alignas(64) uint8_t counts[64] = {};
  alignas(64) int32_t totals[64] = {};
  alignas(64) float sum[64] = {};
  const bool special = t.padding_id >= 0 || t.zero_unknown;
  const bool direct = !half && dim == kEntries;
  const auto row_of_bag = [&](int64_t bag) { return direct ? static_cast<float*>(out) + bag * kEntries : sum; };
  int64_t bag = 0, members = 0, counted = 0, totalled = 0;  // rows in the counts, or in the weighted sum, and in the totals
  const auto settle = [&] {                                 // counts into the totals, still exact
    for (int64_t j = 0; j < 64; ++j) totals[j] += counts[j];
    std::memset(counts, 0, sizeof counts);
    totalled += counted;
    counted = 0;
  };
  const auto worth = [&](const auto* count, int32_t none, float share, float* row) {
    for (int j = 0; j < kEntries; ++j) {
      const int32_t set = kEntries == 64 ? count[j] : count[j] + count[64 - kEntries + j];
      row[j] = (static_cast<float>(2 * set - none) * t.scale + 0.0f) * share;
    }
  };
  const auto finish = [&] {
    float* row = row_of_bag(bag);
    if (!weights) {
      const float share = mode == Mode::kMean && members > 1 ? 1.0f / static_cast<float>(members) : 1.0f;
      const int32_t none = static_cast<int32_t>(t.shared.num_hashes * (counted + totalled));
      if (totalled) {
        settle();
        worth(totals, none, share, row);
        std::memset(totals, 0, sizeof totals);
      } else {
        worth(counts, none, share, row);
        std::memset(counts, 0, sizeof counts);
      }
    } else if (!counted) {
      std::memset(row, 0, kEntries * sizeof(float));
    }
    if (!direct) write_row(sum, dim, half, out, bag);
    ++bag;
    members = counted = totalled = 0;
  };
  const Palette palette(t.shared.num_hashes, t.scale);
  LineStream stream(t.shared, t.pool.data, t.scale, ids + begin, end - begin, t.num_embeddings);
  alignas(64) uint64_t planes[2][4][kGroup];
  for (int64_t first = begin; first < end; first += kGroup) {
    stream.take_planes(planes);
    const int64_t last = least(first + kGroup, end);
    for (int64_t at = first; at < last;) {
      while (at == bounds[bag + 1]) finish();
      const int64_t r = at - first;
      if (special && (ids[at] == t.padding_id || (t.zero_unknown && ids[at] >= t.num_embeddings))) {
        members += ids[at++] != t.padding_id;
        continue;
      }
      const int64_t run = special || weights ? 1 : least(last, bounds[bag + 1]) - at;
      if (weights) {
        add_weighed(&planes[0][0][r], weights[at], palette, counted++, row_of_bag(bag));
      } else {
        add_counts(&planes[0][0][r], run, counts);
        if ((counted += run) > kMostCounted) settle();
      }
      members += run;
      at += run;
    }
  }
  while (bag < count) finish();
}

// Whether every bag has one id, as features of one value have.
inline bool all_single(const int64_t* bounds, int64_t count) {
  bool single = true;
  for (int64_t b = 0; b < count; ++b) single &= bounds[b + 1] - bounds[b] == 1;
  return single;
}

inline void bags(const Table& t, const int64_t* ids, const int64_t* bounds, int64_t count, const float* weights, Mode mode,
                 void* out, bool half, float* scratch) {
  if (!weights && all_single(bounds, count)) {  // their rows, for any mode
    return rows(t, ids + bounds[0], count, out, half ? Out::kHalf : Out::kFloat, scratch);
  }
  if (t.is_plain() && t.shared.is_line_form() && t.shared.chunk_size <= 64 && t.shared.num_chunks() == 1 && mode != Mode::kMax) {
    if (t.shared.chunk_size == 64) return line_bags<64>(t, ids, bounds, count, weights, mode, out, half);
    return line_bags<32>(t, ids, bounds, count, weights, mode, out, half);
  }
  block_bags(t, ids, bounds, count, weights, mode, out, half, scratch);
}

}  // namespace HFH_ISA
}  // namespace hfh
