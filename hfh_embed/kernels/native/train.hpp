// Training: the gradient of a pool from the gradients of rows, and the optimizer's step in the same pass.
//
// Version 1, autograd's index_add: a gradient as large as the pool for every table, 2.7 s for 213 k rows of 64 on a 1-bit
// pool. Version 2: the units (id, chunk) are sorted by the line that they read, a line's gradient is summed in the
// first-level cache, and the line is updated and rounded while it is there. Nothing but the touched lines is read or
// written, and the order of every sum is that of the ids, whatever the number of threads. Version 3, here; milliseconds of an
// update by 213 k units of 40 k lines, and of 164 k lines that hardly two share, on one core of a machine with AVX-512:
//
//   version 2: every unit's gradient stored twice over, so that a rotation is a place to begin          26    65
//   rotations by permuting whole vectors in registers; sums applied from registers                      19    61
//   prefetches that are there (gcc had taken functions that do nothing else for pure and dropped them)  17    56
//   masters in huge pages, of float32                                                                   15    44
//   the beginning of each line asked for eight units ahead                                              11    40
//   masters of bfloat16                                                                                 11    31
//
// What did not help: sums of 4 to 16 lines first and their values after (no overlap gained), prefetchw (48 against 56 ms), not
// prefetching the second half of a line (60), the signs packed from memory once a line is done. What is left for 164 k lines: a plain
// loop that adds a constant to the same 336 MB of values takes 28 ms, the gradients' rows lie in memory in the order of the ids.
#pragma once

#include "fetch.hpp"
#include "line.hpp"
#include "masters.hpp"

namespace hfh {
namespace HFH_ISA {

// Where each unit of a line form reads, and what its gradient is. Writes count * chunks places.
inline void locate(const Shared& shared, const int64_t* ids, int64_t count, const float* grads, float factor, uint32_t* line,
                   Unit* units) {
  const int64_t chunks = shared.num_chunks(), size = shared.chunk_size, draws = size == 32 ? 3 : 2;
  const uint32_t lines = static_cast<uint32_t>(shared.slots / kLineBits);
  const uint64_t used_fields = shared.signs ? ~0ULL : 0x7F7F7F7F7F7F7F7FULL;
  for (int64_t i = 0; i < count; i += kGroup) {
    const int64_t some = least(kGroup, count - i);
    int64_t id[kGroup] = {};
    uint64_t state[kGroup], where[kGroup], fields[2][kGroup] = {};
    std::memcpy(id, ids + i, static_cast<size_t>(some) * sizeof(int64_t));
    for (int j = 0; j < kGroup; ++j) state[j] = id_state(shared.key, id[j]);
    for (int64_t c = 0; c < chunks; ++c) {
      for (int j = 0; j < kGroup; ++j) {
        where[j] = static_cast<uint64_t>(static_cast<uint32_t>(draw(state[j], draws * c) >> 32)) * lines >> 32;
        fields[0][j] = draw(state[j], draws * c + 1) & used_fields;
      }
      for (int j = 0; j < kGroup && draws == 3; ++j) fields[1][j] = draw(state[j], draws * c + 2) & used_fields;
      const int16_t used = static_cast<int16_t>(least(size, shared.dim - c * size));
      for (int64_t j = 0; j < some; ++j) {
        line[(i + j) * chunks + c] = static_cast<uint32_t>(where[j]);
        units[(i + j) * chunks + c] = {{fields[0][j], fields[1][j]}, grads + (i + j) * shared.dim + c * size, factor, used,
                                       static_cast<int16_t>(size)};
      }
    }
  }
}

// A stable sort of (line, unit) by line, 11 bits a pass; returns which of the two pairs of arrays holds the result.
inline int sort_by_line(int64_t count, uint32_t most_lines, uint32_t* const (&line)[2], uint32_t* const (&unit)[2]) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  for (int64_t i = 0; i < count; ++i) unit[0][i] = static_cast<uint32_t>(i);
  int from = 0;
  for (int shift = 0; shift < 32 && (most_lines - 1) >> shift; shift += kBits) {
    int64_t place[kBuckets + 1] = {};
    for (int64_t i = 0; i < count; ++i) ++place[((line[from][i] >> shift) & (kBuckets - 1)) + 1];
    for (int b = 0; b < kBuckets; ++b) place[b + 1] += place[b];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = place[(line[from][i] >> shift) & (kBuckets - 1)]++;
      line[1 - from][to] = line[from][i];
      unit[1 - from][to] = unit[from][i];
    }
    from = 1 - from;
  }
  return from;
}

constexpr int64_t kTogether = 8;   // units of one line that are summed while a word's sums stay in registers
constexpr int64_t kMostSize = 128;  // slots of a word

// Some units of one line that are summed together. A line of many units has several of these, one after the other.
struct Batch {
  int64_t begin, end;
  bool first, last;  // of its line
};

// Entries of a row in the order of slots, begun ``first`` entries after its first one: out[k] holds entries first + k * kLanes and
// on, around the end. Whole vectors are loaded and shifted in registers: a load at any place would cross lines.
template <int kSize>
inline void rotated(const float* row, unsigned first, Vec (&out)[kSize / kLanes]) {
  constexpr unsigned kVecs = kSize / kLanes;
#if defined(__AVX2__)
  const unsigned skipped = first / kLanes;
  const IntVec from = load_counting(first % kLanes);
  Vec part = load(row + skipped % kVecs * kLanes);
#if defined(__AVX512F__)
  for (unsigned k = 0; k < kVecs; ++k) {
    const Vec next = load(row + (skipped + k + 1) % kVecs * kLanes);
    out[k] = (Vec)_mm512_permutex2var_ps((__m512)part, (__m512i)from, (__m512)next);
    part = next;
  }
#else
  const __m256 wrapped = (__m256)(from > kLanes - 1);  // a permutation looks at the lowest three bits
  __m256 turned = _mm256_permutevar8x32_ps((__m256)part, (__m256i)from);
  for (unsigned k = 0; k < kVecs; ++k) {
    const __m256 next = _mm256_permutevar8x32_ps((__m256)load(row + (skipped + k + 1) % kVecs * kLanes), (__m256i)from);
    out[k] = (Vec)_mm256_blendv_ps(turned, next, wrapped);
    turned = next;
  }
#endif
#else
  for (unsigned k = 0; k < kVecs; ++k) {
    for (unsigned lane = 0; lane < kLanes; ++lane) out[k][lane] = row[(first + k * kLanes + lane) % kSize];
  }
#endif
}

// What a batch is summed from: whole rows of gradients, each with its factor and the negated one.
struct Rows {
  const Unit* unit[kTogether];
  const float* row[kTogether];
  float factor[kTogether][2];
  alignas(64) float padded[kTogether][kMostSize];  // of units that use only a part of their words
};

// sum[slot] += factor * sign * gradient of the entry that reads the slot, for all words of a batch; the last batch of a line is
// applied at once. ``ahead(w)`` is called for each eighth of the line.
template <StepKind kKind, class Value, int kSize, class Ahead>
inline void add_batch(const Step& step, const Batch& batch, const Rows& rows, float* sum, Vec& before, Vec& after, const Ahead& ahead) {
  constexpr int kVecs = kSize / kLanes;
  const int64_t line = static_cast<int64_t>(step.line[batch.begin]) * kLineBits, count = batch.end - batch.begin;
  const Noise noise(sizeof(Value) == 2 && batch.last ? mix64(step.seed + step.line[batch.begin]) : 0);
  for (int u = 0; u < kLineBits / kSize; ++u) {
    for (int w = u * kSize; w < (u + 1) * kSize; w += kSize < 64 ? kSize : 64) {
      if (w % 64 == 0) ahead(w / 64);
    }
    Vec acc[kVecs], part[kVecs];
    for (int k = 0; k < kVecs; ++k) acc[k] = batch.first ? Vec{} : load(sum + u * kSize + k * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      const unsigned field = static_cast<unsigned>(rows.unit[i]->fields[u / 8] >> (u % 8 * 8)) & 0xFF;
      const Vec factor = spread(rows.factor[i][field >> 7]);
      rotated<kSize>(rows.row[i], (kSize - field) & (kSize - 1), part);
      for (int k = 0; k < kVecs; ++k) acc[k] = multiply_add(part[k], factor, acc[k]);
    }
    if (batch.last) {
      uint64_t signs[(kSize + 63) / 64] = {};
      for (int k = 0; k < kVecs; k += 2) {
        const int slot = u * kSize + k * kLanes, of_word = k * kLanes % 64;
        const WordVec* own = noise.of + slot % 64 / kLanes;
        signs[k * kLanes / 64] |= apply<kKind, Value>(step, line + slot, acc + k, own, before, after) << of_word;
      }
      if (kKind != StepKind::kGradient) std::memcpy(step.packed + (line + u * kSize) / 8, signs, kSize / 8);
    } else {
      for (int k = 0; k < kVecs; ++k) store(sum + u * kSize + k * kLanes, acc[k]);
    }
  }
}

// Units begin ... end in the order of their lines, whole lines only; returns by how much the sum of all squared values grew.
// While a batch is summed, the memory is asked for what the next but one needs, an eighth at a time.
template <StepKind kKind, class Value>
inline double update_as(const Step& step, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 12;  // units
  alignas(64) float sum[kLineBits];
  Rows rows;
  double grown = 0.0;
  const auto unit = [&](int64_t i) -> const Unit& { return step.units[step.unit[i]]; };
  const auto after_of = [&](const Batch& batch) {
    Batch next{batch.end, batch.end, batch.last, true};
    if (next.begin == end) return next;
    const uint32_t line = step.line[next.begin];
    const int16_t size = unit(next.begin).size;
    const int64_t most_end = least(end, next.begin + kTogether);
    while (++next.end < most_end && step.line[next.end] == line && unit(next.end).size == size) {
    }
    next.last = next.end == end || step.line[next.end] != line;
    return next;
  };
  const auto ask = [&](const Batch& batch, int eighth) {
    if (!batch.first || batch.begin == end) return;
    const int64_t slot = static_cast<int64_t>(step.line[batch.begin]) * kLineBits + 64 * eighth;
    const auto* values = static_cast<const Value*>(step.values) + slot;
    for (size_t j = 0; j < 64; j += 64 / sizeof(Value)) prefetch(values + j);
    for (int64_t j = 0; j < 64; j += 16) {
      if constexpr (kKind == StepKind::kAdam) {
        prefetch(step.first_moment + slot + j);
        prefetch(step.second_moment + slot + j);
      }
    }
    if (kKind != StepKind::kGradient && eighth == 0) prefetch(step.packed + slot / 8);
  };
  Batch now = after_of({begin, begin, true, true}), next = after_of(now), soon = after_of(next);
  for (int eighth = 0; eighth < 8; ++eighth) ask(now, eighth), ask(next, eighth);
  while (now.begin < end) {
    for (int64_t i = 0; i < now.end - now.begin; ++i) {
      if (now.begin + i + 2 * kAhead < end) prefetch(&unit(now.begin + i + 2 * kAhead));
      if (now.begin + i + 8 < end) {  // the beginning of a line makes the processor fetch on by itself
        const auto* values = static_cast<const Value*>(step.values) + static_cast<int64_t>(step.line[now.begin + i + 8]) * kLineBits;
        prefetch(values), prefetch(values + 64 / sizeof(Value));
      }
      if (now.begin + i + kAhead < end) {
        const Unit& soon = unit(now.begin + i + kAhead);
        for (int64_t j = 0; j < soon.used; j += 16) prefetch(soon.gradient + j);
      }
      const Unit& one = unit(now.begin + i);
      rows.unit[i] = &one, rows.row[i] = one.gradient;
      rows.factor[i][0] = one.factor, rows.factor[i][1] = -one.factor;
      if (one.used == one.size) continue;
      rows.row[i] = rows.padded[i];
      for (int64_t j = 0; j < one.size; ++j) rows.padded[i][j] = j < one.used ? one.gradient[j] : 0.0f;
    }
    Vec before{}, after{};
    const auto ahead = [&](int eighth) { ask(soon, eighth); };
    if (rows.unit[0]->size == 32) {
      add_batch<kKind, Value, 32>(step, now, rows, sum, before, after, ahead);
    } else if (rows.unit[0]->size == 64) {
      add_batch<kKind, Value, 64>(step, now, rows, sum, before, after, ahead);
    } else {
      add_batch<kKind, Value, kMostSize>(step, now, rows, sum, before, after, ahead);
    }
    for (int k = 0; k < kLanes; ++k) grown += static_cast<double>(after[k]) - static_cast<double>(before[k]);
    now = next, next = soon, soon = after_of(soon);
  }
  return grown;
}

inline double update(const Step& step, int64_t begin, int64_t end) {
  switch (step.kind) {
    case StepKind::kGradient: return update_as<StepKind::kGradient, float>(step, begin, end);
    case StepKind::kSgd:
      return step.narrow ? update_as<StepKind::kSgd, uint16_t>(step, begin, end) : update_as<StepKind::kSgd, float>(step, begin, end);
    default:
      return step.narrow ? update_as<StepKind::kAdam, uint16_t>(step, begin, end) : update_as<StepKind::kAdam, float>(step, begin, end);
  }
}

// gradient[slot] += factor * sign * gradient of the entry that read it, for any locality.
inline void scatter(const Shared& shared, const int64_t* ids, int64_t count, const float* grads, float factor, float* gradient) {
  Addresser addresser(shared);
  Address where[kMaxHashes];
  const int64_t size = shared.chunk_size, chunks = shared.num_chunks();
  for (int64_t i = 0; i < count; ++i) {
    addresser.begin(ids[i]);
    for (int64_t c = 0; c < chunks; ++c) {
      addresser.chunk(c, where);
      const int64_t used = least(size, shared.dim - c * size);
      const float* from = grads + i * shared.dim + c * size;
      for (int64_t u = 0; u < shared.num_hashes; ++u) {
        const float signed_factor = where[u].negative ? -factor : factor;
        const int64_t wraps = least(used, size - where[u].rotation);
        float* to = gradient + where[u].start + where[u].rotation;
        for (int64_t j = 0; j < wraps; ++j) to[j] += signed_factor * from[j];
        for (int64_t j = wraps; j < used; ++j) to[j - size] += signed_factor * from[j];
      }
    }
  }
}

}  // namespace HFH_ISA
}  // namespace hfh
