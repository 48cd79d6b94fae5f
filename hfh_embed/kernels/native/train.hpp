// Training: the gradient of a pool from the gradients of rows, and the optimizer's step in the same pass.
//
// Version 1, autograd's index_add: a gradient as large as the pool for every table, 2.7 s for 213 k rows of 64 on a 1-bit
// pool. Version 2, here: the units (id, chunk) are sorted by the line that they read, a line's gradient is summed in the
// first-level cache, and the line is updated and rounded while it is there. Nothing but the touched lines is read or
// written, and the order of every sum is that of the ids, whatever the number of threads.
#pragma once

#include "fetch.hpp"
#include "line.hpp"

namespace hfh {
namespace HFH_ISA {

// Where each unit of a line form reads, and what its gradient is. Writes count * chunks places.
inline void locate(const Shared& shared, const int64_t* ids, int64_t count, const float* grads, float factor, uint32_t* line,
                   Unit* units) {
  const int64_t chunks = shared.num_chunks(), size = shared.chunk_size;
  const uint32_t lines = static_cast<uint32_t>(shared.slots / kLineBits);
  const uint64_t used_fields = shared.signs ? ~0ULL : 0x7F7F7F7F7F7F7F7FULL;
  for (int64_t i = 0; i < count; i += kGroup) {
    const int64_t some = least(kGroup, count - i);
    int64_t id[kGroup] = {};
    uint64_t state[kGroup], where[kGroup], fields[kGroup];
    std::memcpy(id, ids + i, static_cast<size_t>(some) * sizeof(int64_t));
    for (int j = 0; j < kGroup; ++j) state[j] = id_state(shared.key, id[j]);
    for (int64_t c = 0; c < chunks; ++c) {
      for (int j = 0; j < kGroup; ++j) {
        where[j] = static_cast<uint64_t>(static_cast<uint32_t>(draw(state[j], 2 * c) >> 32)) * lines >> 32;
        fields[j] = draw(state[j], 2 * c + 1) & used_fields;
      }
      const int16_t used = static_cast<int16_t>(least(size, shared.dim - c * size));
      for (int64_t j = 0; j < some; ++j) {
        line[(i + j) * chunks + c] = static_cast<uint32_t>(where[j]);
        units[(i + j) * chunks + c] = {fields[j], grads + (i + j) * shared.dim + c * size, factor, used,
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

// 0, 1, 2, ... from ``first`` on.
inline IntVec load_counting(unsigned first = 0) {
  alignas(64) static constexpr int32_t kCounting[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  IntVec v;
  std::memcpy(&v, kCounting + first, sizeof v);
  return v;
}

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

// Bit k is set where value k is not below zero.
inline uint64_t signs_of(Vec values) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)values, _mm512_setzero_ps(), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)values, _mm256_setzero_ps(), _CMP_GE_OQ)));
#else
  uint64_t bits = 0;
  for (int k = 0; k < kLanes; ++k) bits |= static_cast<uint64_t>(values[k] >= 0.0f) << k;
  return bits;
#endif
}

// The signs of a line's 512 values as its 64 bytes.
template <class Value>
inline void pack_line(const Value* values, uint8_t* bytes) {
  for (int64_t j = 0; j < kLineBits; j += 64) {
    uint64_t bits = 0;
    for (int k = 0; k < 64; k += kLanes) bits |= signs_of(load(values + j + k)) << k;
    std::memcpy(bytes + j / 8, &bits, 8);
  }
}

// 16 random bits for each of a line's values, in pairs: value j < 32 of a word of 64 has the lower half of a draw, value j + 32 the
// upper one. The same whatever the instruction set or the number of threads. The mixer is Wellons' (nullprogram.com, lowbias32).
inline WordVec noise_pair(uint32_t of_line, int64_t draw) {
  WordVec x = (WordVec)load_counting() * 0x9E3779B9u + (of_line + static_cast<uint32_t>(draw) * 0x9E3779B9u);
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  return x ^ (x >> 15);
}

// What the gradients of some values do to them, returned as they become; ``before`` and ``after`` count their squares.
template <StepKind kKind, class Value>
inline Vec apply(const Step& step, int64_t slot, Vec g, WordVec noise, Vec& before, Vec& after) {
  Value* values = static_cast<Value*>(step.values) + slot;
  const Vec old = load(values);
  if constexpr (kKind == StepKind::kGradient) {
    store(values, old + g);
    return g;
  } else {
    Vec now;
    if constexpr (kKind == StepKind::kSgd) {
      now = old - spread(step.rate) * g;
    } else {
      const Vec m = load(step.first_moment + slot) * step.beta1 + g * (1.0f - step.beta1);
      const Vec v = load(step.second_moment + slot) * step.beta2 + g * g * (1.0f - step.beta2);
      store(step.first_moment + slot, m);
      store(step.second_moment + slot, v);
      now = old - spread(step.rate) * m / (square_root(v) + step.epsilon);
    }
    if constexpr (sizeof(Value) == 2) {
      now = store_noisy(values, now, noise);
    } else {
      store(values, now);
    }
    before += old * old;
    after += now * now;
    return now;
  }
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
  const uint32_t of_line = static_cast<uint32_t>(sizeof(Value) == 2 ? mix64(step.seed + step.line[batch.begin]) : 0);
  for (int u = 0; u < kLineBits / kSize; ++u) {
    for (int w = 0; w < kSize / 64; ++w) ahead(u * (kSize / 64) + w);
    Vec acc[kVecs], part[kVecs];
    for (int k = 0; k < kVecs; ++k) acc[k] = batch.first ? Vec{} : load(sum + u * kSize + k * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      const unsigned field = static_cast<unsigned>(rows.unit[i]->fields >> (8 * u)) & 0xFF;
      const Vec factor = spread(rows.factor[i][field >> 7]);
      rotated<kSize>(rows.row[i], (kSize - field) & (kSize - 1), part);
      for (int k = 0; k < kVecs; ++k) acc[k] = multiply_add(part[k], factor, acc[k]);
    }
    if (batch.last) {
      uint64_t signs[kSize / 64] = {};
      for (int k = 0; k < kVecs; ++k) {
        const int of_word = k * kLanes % 64;
        if (of_word >= 32) continue;
        WordVec noise{};
        if constexpr (sizeof(Value) == 2) noise = noise_pair(of_line, u * kSize / 2 + k * kLanes / 64 * 32 + of_word);
        const int64_t slot = line + u * kSize + k * kLanes;
        const Vec lower = apply<kKind, Value>(step, slot, acc[k], noise & 0xFFFF, before, after);
        const Vec upper = apply<kKind, Value>(step, slot + 32, acc[k + 32 / kLanes], noise >> 16, before, after);
        signs[k * kLanes / 64] |= signs_of(lower) << of_word | signs_of(upper) << (of_word + 32);
      }
      if (kKind != StepKind::kGradient) std::memcpy(step.packed + (line + u * kSize) / 8, signs, sizeof signs);
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
    if (rows.unit[0]->size == 64) {
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

// Values as codes, packed: floor(v / (2 * half_step)) within the levels, as nn/rounding.py has it.
template <int kBits, class Value>
inline void pack_codes(const Value* values, int64_t count, float half_step, uint8_t* bytes) {
  constexpr int kCodes = 32 / kBits;
  constexpr float kHalf = static_cast<float>(1 << (kBits - 1));
  const float step = 2.0f * half_step;
  for (int64_t j = 0; j < count; j += kCodes) {  // pools are whole lines, so there are whole words
    uint32_t word = 0;
    for (int k = 0; k < kCodes; ++k) {
      float value;
      if constexpr (sizeof(Value) == 2) value = bits_to_float(static_cast<uint32_t>(values[j + k]) << 16); else value = values[j + k];
      float cell = value / step;
      cell = cell >= -kHalf ? cell : -kHalf;
      cell = cell > kHalf - 1.0f ? kHalf - 1.0f : cell;
      int32_t whole = static_cast<int32_t>(cell);
      whole -= static_cast<float>(whole) > cell;
      word |= static_cast<uint32_t>(whole + (1 << (kBits - 1))) << (k * kBits);
    }
    std::memcpy(bytes + j * kBits / 8, &word, 4);
  }
}

template <class Value>
inline void pack_values(const Value* values, int64_t count, int bits, float half_step, uint8_t* bytes) {
  switch (bits) {
    case 1:
      for (int64_t line = 0; line < count / kLineBits; ++line) pack_line(values + line * kLineBits, bytes + line * 64);
      return;
    case 2: return pack_codes<2>(values, count, half_step, bytes);
    case 4: return pack_codes<4>(values, count, half_step, bytes);
    default: return pack_codes<8>(values, count, half_step, bytes);
  }
}

inline void pack(const void* values, bool narrow, int64_t count, int bits, float half_step, uint8_t* bytes) {
  if (narrow) return pack_values(static_cast<const uint16_t*>(values), count, bits, half_step, bytes);
  pack_values(static_cast<const float*>(values), count, bits, half_step, bytes);
}

}  // namespace HFH_ISA
}  // namespace hfh
