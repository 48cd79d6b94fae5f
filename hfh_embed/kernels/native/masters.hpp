// A pool's values in training, float32 or bfloat16: how they are stored, rounded to codes, and changed by an optimizer.
#pragma once

#include "hashing.hpp"
#include "values.hpp"

namespace hfh {
namespace HFH_ISA {

// 0, 1, 2, ... from ``first`` on.
inline IntVec load_counting(unsigned first = 0) {
  alignas(64) static constexpr int32_t kCounting[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  IntVec v;
  std::memcpy(&v, kCounting + first, sizeof v);
  return v;
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

// 16 random bits for each of 64 values, which the words of a line share, since what a row sums lies at another place in each.
// The same whatever the instruction set or the number of threads. The mixer is Wellons' (nullprogram.com, lowbias32).
struct Noise {
  WordVec of[64 / kLanes];

  explicit Noise(uint64_t seed) {
    for (int k = 0; k < 32 / kLanes; ++k) {
      WordVec x = (WordVec)load_counting() * 0x9E3779B9u + static_cast<uint32_t>(seed + static_cast<uint64_t>(k * kLanes) * 0x9E3779B9u);
      x = (x ^ (x >> 16)) * 0x7FEB352Du;
      x = (x ^ (x >> 15)) * 0x846CA68Bu;
      of[k] = x >> 16;
      of[k + 32 / kLanes] = x & 0xFFFF;
    }
  }
};

// Store two vectors of values side by side; bit k of what is returned is set where value k is not below zero. bfloat16 is rounded
// up where the lower half and the noise reach the upper half, and the values become what is stored.
inline uint64_t put(float* to, Vec& a, Vec& b, const WordVec*) {
  store(to, a), store(to + kLanes, b);
  return signs_of(a) | signs_of(b) << kLanes;
}

inline uint64_t put(uint16_t* to, Vec& a, Vec& b, const WordVec* noise) {
  const WordVec first = (WordVec)a + noise[0], second = (WordVec)b + noise[1];
  const WordVec kept_first = first & 0xFFFF0000u, kept_second = second & 0xFFFF0000u;
  a = (Vec)kept_first, b = (Vec)kept_second;
#if defined(__AVX512BW__)
  const __m512i mixed = _mm512_packus_epi32(_mm512_srli_epi32((__m512i)first, 16), _mm512_srli_epi32((__m512i)second, 16));
  const __m512i halves = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), mixed);
  _mm512_storeu_si512(to, halves);
  return _mm512_cmple_epu16_mask(halves, _mm512_set1_epi16(-0x8000));  // up to -0
#else
  const HalfVec low = __builtin_convertvector(first >> 16, HalfVec), high = __builtin_convertvector(second >> 16, HalfVec);
  std::memcpy(to, &low, sizeof low);
  std::memcpy(to + kLanes, &high, sizeof high);
  return signs_of(a) | signs_of(b) << kLanes;
#endif
}

// What gradients do to two vectors of values from ``slot`` on, and their signs as of put; ``before`` and ``after`` count their squares.
template <StepKind kKind, class Value>
inline uint64_t apply(const Step& step, int64_t slot, const Vec* g, const WordVec* noise, Vec& before, Vec& after) {
  Value* values = static_cast<Value*>(step.values) + slot;
  Vec now[2];
  for (int k = 0; k < 2; ++k) {
    const Vec old = load(values + k * kLanes);
    if constexpr (kKind == StepKind::kGradient) {
      now[k] = old + g[k];
    } else if constexpr (kKind == StepKind::kSgd) {
      now[k] = old - spread(step.rate) * g[k];
    } else {
      float *first = step.first_moment + slot + k * kLanes, *second = step.second_moment + slot + k * kLanes;
      const Vec m = load(first) * step.beta1 + g[k] * (1.0f - step.beta1);
      const Vec v = load(second) * step.beta2 + g[k] * g[k] * (1.0f - step.beta2);
      store(first, m);
      store(second, v);
      now[k] = old - spread(step.rate) * m / (square_root(v) + step.epsilon);
    }
    if constexpr (kKind != StepKind::kGradient) before = multiply_add(old, old, before);
  }
  const uint64_t signs = put(values, now[0], now[1], noise);
  if constexpr (kKind != StepKind::kGradient) {
    for (int k = 0; k < 2; ++k) after = multiply_add(now[k], now[k], after);
  }
  return signs;
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
