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

// A unit's gradient two times over, so that a rotation is a place to begin.
inline void lay_out(const Unit& unit, float* twice) {
  const int64_t size = unit.size;
  if (unit.used == size) {
    for (int64_t j = 0; j < size; j += kLanes) {
      const Vec part = load(unit.gradient + j);
      store(twice + j, part);
      store(twice + size + j, part);
    }
    return;
  }
  for (int64_t j = 0; j < size; ++j) twice[j] = twice[size + j] = j < unit.used ? unit.gradient[j] : 0.0f;
}

// sum[slot] += factor * sign * gradient of the entry that reads the slot, for all words of some units of one line.
template <int kSize>
inline void add_units(const Unit* const* units, const float* const* twice, int64_t count, float* sum) {
  constexpr int kVecs = kSize / kLanes;
  for (int u = 0; u < kLineBits / kSize; ++u) {
    Vec acc[kVecs];
    for (int k = 0; k < kVecs; ++k) acc[k] = load(sum + u * kSize + k * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      const unsigned field = static_cast<unsigned>(units[i]->fields >> (8 * u)) & 0xFF;
      const float* from = twice[i] + kSize - (field & (kSize - 1));
      const Vec factor = spread(field & 0x80 ? -units[i]->factor : units[i]->factor);
      for (int k = 0; k < kVecs; ++k) acc[k] = multiply_add(load(from + k * kLanes), factor, acc[k]);
    }
    for (int k = 0; k < kVecs; ++k) store(sum + u * kSize + k * kLanes, acc[k]);
  }
}

// The signs of a line's 512 values as its 64 bytes: bit set where the value is not below zero.
inline void pack_line(const float* values, uint8_t* bytes) {
#if defined(__AVX512F__)
  for (int64_t j = 0; j < kLineBits; j += 16) {
    const uint16_t bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + j), _mm512_setzero_ps(), _CMP_GE_OQ);
    std::memcpy(bytes + j / 8, &bits, 2);
  }
#else
  for (int64_t j = 0; j < kLineBits; j += 8) {
    unsigned bits = 0;
    for (int k = 0; k < 8; ++k) bits |= static_cast<unsigned>(values[j + k] >= 0.0f) << k;
    bytes[j / 8] = static_cast<uint8_t>(bits);
  }
#endif
}

// What one line's gradient does to its values; returns by how much the sum of their squares grew.
inline double apply(const Step& step, int64_t line, const float* sum) {
  float* values = step.values + line * kLineBits;
  if (step.kind == StepKind::kGradient) {
    for (int64_t j = 0; j < kLineBits; j += kLanes) store(values + j, load(values + j) + load(sum + j));
    return 0.0;
  }
  Vec before{}, after{};
  float* first = step.first_moment + line * kLineBits;
  float* second = step.second_moment + line * kLineBits;
  const Vec rate = spread(step.rate);
  for (int64_t j = 0; j < kLineBits; j += kLanes) {
    const Vec old = load(values + j), g = load(sum + j);
    Vec now;
    if (step.kind == StepKind::kSgd) {
      now = old - rate * g;
    } else {
      const Vec m = load(first + j) * step.beta1 + g * (1.0f - step.beta1);
      const Vec v = load(second + j) * step.beta2 + g * g * (1.0f - step.beta2);
      store(first + j, m);
      store(second + j, v);
      now = old - rate * m / (square_root(v) + step.epsilon);
    }
    store(values + j, now);
    before += old * old;
    after += now * now;
  }
  if (step.packed) pack_line(values, step.packed + line * (kLineBits / 8));
  double grown = 0.0;
  for (int k = 0; k < kLanes; ++k) grown += static_cast<double>(after[k]) - static_cast<double>(before[k]);
  return grown;
}

// Units begin ... end in the order of their lines, whole lines only. Gradients are laid out kTogether units before they are
// summed: a load that crosses two stores has to wait until both have left the processor's store buffer.
inline double update(const Step& step, int64_t begin, int64_t end) {
  constexpr int64_t kRing = 2 * kTogether;
  alignas(64) float sum[kLineBits], twice[kRing][2 * kMostSize];
  int64_t laid_out = begin;
  double grown = 0.0;
  const auto unit = [&](int64_t i) -> const Unit& { return step.units[step.unit[i]]; };
  const auto prepare = [&](int64_t i) {
    if (i + 2 * kTogether < end) prefetch(&unit(i + 2 * kTogether));
    if (i + kTogether < end) {
      const Unit& soon = unit(i + kTogether);
      for (int64_t j = 0; j < soon.used; j += 16) prefetch(soon.gradient + j);
    }
    if (i == begin || step.line[i] != step.line[i - 1]) {
      const float* values = step.values + static_cast<int64_t>(step.line[i]) * kLineBits;
      for (int64_t j = 0; j < kLineBits; j += 16) prefetch(values + j);
    }
    lay_out(unit(i), twice[i % kRing]);
  };
  for (int64_t i = begin; i < end;) {
    const uint32_t line = step.line[i];
    std::memset(sum, 0, sizeof sum);
    while (i < end && step.line[i] == line) {
      const Unit* units[kTogether];
      const float* laid[kTogether];
      int64_t count = 0;
      const int64_t size = unit(i).size;
      for (; count < kTogether && i < end && step.line[i] == line && unit(i).size == size; ++i, ++count) {
        while (laid_out < least(end, i + kTogether)) prepare(laid_out), ++laid_out;
        units[count] = &unit(i), laid[count] = twice[i % kRing];
      }
      size == 64 ? add_units<64>(units, laid, count, sum) : add_units<kMostSize>(units, laid, count, sum);
    }
    grown += apply(step, line, sum);
  }
  return grown;
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
template <int kBits>
inline void pack_codes(const float* values, int64_t count, float half_step, uint8_t* bytes) {
  constexpr int kCodes = 32 / kBits;
  constexpr float kHalf = static_cast<float>(1 << (kBits - 1));
  const float step = 2.0f * half_step;
  for (int64_t j = 0; j < count; j += kCodes) {  // pools are whole lines, so there are whole words
    uint32_t word = 0;
    for (int k = 0; k < kCodes; ++k) {
      float cell = values[j + k] / step;
      cell = cell >= -kHalf ? cell : -kHalf;
      cell = cell > kHalf - 1.0f ? kHalf - 1.0f : cell;
      int32_t whole = static_cast<int32_t>(cell);
      whole -= static_cast<float>(whole) > cell;
      word |= static_cast<uint32_t>(whole + (1 << (kBits - 1))) << (k * kBits);
    }
    std::memcpy(bytes + j * kBits / 8, &word, 4);
  }
}

inline void pack(const float* values, int64_t count, int bits, float half_step, uint8_t* bytes) {
  switch (bits) {
    case 1:
      for (int64_t line = 0; line < count / kLineBits; ++line) pack_line(values + line * kLineBits, bytes + line * 64);
      return;
    case 2: return pack_codes<2>(values, count, half_step, bytes);
    case 4: return pack_codes<4>(values, count, half_step, bytes);
    default: return pack_codes<8>(values, count, half_step, bytes);
  }
}

}  // namespace HFH_ISA
}  // namespace hfh
