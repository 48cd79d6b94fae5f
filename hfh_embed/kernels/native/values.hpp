// Reading stored values: few-bit codes, each the odd integer level 2c - (2**bits - 1), and floats.
//
// Version 1 read value by value: 570 ns for 64 coefficients of 2 bits. Version 2, here, makes a vector of values at once: the
// codes of a vector lie in one or two 32-bit windows, which are shifted by another amount in every lane. A row's windows end with the
// row: eight bytes read where one was meant lay in two lines for every ninth row, and nobody had asked the memory for the second
// (8 private bits an id beside a line of 16 entries, 10 M ids, batches of 1,024: 27 ns a row before, 19 after).
#pragma once

#include "half.hpp"
#include "kernels.hpp"

namespace hfh {
namespace HFH_ISA {

template <class Part>
HFH_INLINE uint64_t part_at(const uint8_t* from) {
  Part part;
  std::memcpy(&part, from, sizeof part);
  return part;
}

// Eight bytes from ``byte`` on; what lies behind the end reads as zeros. Fewer are read as two parts that may overlap.
HFH_INLINE uint64_t word_at(Bytes bytes, int64_t byte) {
  const int64_t left = bytes.size - byte;
  const uint8_t* from = bytes.data + byte;
  if (left >= 8) return part_at<uint64_t>(from);
  if (left >= 4) return part_at<uint32_t>(from) | part_at<uint32_t>(from + left - 4) << (8 * (left - 4));
  if (left >= 2) return part_at<uint16_t>(from) | part_at<uint16_t>(from + left - 2) << (8 * (left - 2));
  return left == 1 ? *from : 0;
}

// 32 bits from bit ``bit`` on, zeros behind the end.
HFH_INLINE uint32_t window(Bytes bytes, int64_t bit) { return static_cast<uint32_t>(word_at(bytes, bit >> 3) >> (bit & 7)); }

typedef uint32_t WordVec __attribute__((vector_size(4 * kLanes)));

typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

// bfloat16 is the upper half of a float32.
inline Vec load(const uint16_t* from) {
  HalfVec half;
  std::memcpy(&half, from, sizeof half);
  const WordVec words = __builtin_convertvector(half, WordVec) << 16;
  return (Vec)words;
}

// By how much each lane's window is shifted, and which lanes look into the second window (-1).
template <int kBits>
struct Shifts {
  uint32_t by[kLanes] = {};
  int32_t later[kLanes] = {};
  constexpr Shifts() {
    for (int k = 0; k < kLanes; ++k) {
      by[k] = static_cast<uint32_t>(k * kBits % 32);
      later[k] = k * kBits >= 32 ? -1 : 0;
    }
  }
};

// The codes of kLanes values from place ``first`` on; those behind the end of the bytes are zeros.
template <int kBits>
inline IntVec codes(Bytes bytes, int64_t first) {
  if constexpr (kBits == 8) {
    typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));
    ByteVec given{};
    if (bytes.size - first >= kLanes) {
      std::memcpy(&given, bytes.data + first, kLanes);
    } else {
      for (int64_t k = 0; k < kLanes; k += 8) {
        const uint64_t word = word_at(bytes, first + k);
        std::memcpy(reinterpret_cast<char*>(&given) + k, &word, static_cast<size_t>(least(8, kLanes - k)));
      }
    }
    return __builtin_convertvector(given, IntVec);
  } else {
    constexpr int kCodes = 32 / kBits;  // in a window
    constexpr Shifts<kBits> kShifts;
    WordVec shifts, words = window(bytes, first * kBits) - WordVec{};
    std::memcpy(&shifts, kShifts.by, sizeof shifts);
    if constexpr (kCodes < kLanes) {
      IntVec later;
      std::memcpy(&later, kShifts.later, sizeof later);
      words = later ? window(bytes, first * kBits + 32) - WordVec{} : words;
    }
    return (IntVec)(words >> shifts) & ((1 << kBits) - 1);
  }
}

// kLanes few-bit levels from place ``first`` on.
inline IntVec levels(Bytes bytes, int bits, int64_t first) {
  switch (bits) {
    case 1: return 2 * codes<1>(bytes, first) - 1;
    case 2: return 2 * codes<2>(bytes, first) - 3;
    case 4: return 2 * codes<4>(bytes, first) - 15;
    default: return 2 * codes<8>(bytes, first) - 255;
  }
}

// The first ``count`` lanes from and into memory; the others are zeros.
inline Vec load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  Vec values{};
  for (int64_t k = 0; k < count; ++k) values[k] = from[k];
  return values;
#endif
}

inline void store_some(float* to, Vec values, int64_t count) {
  if (count >= kLanes) return store(to, values);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)values);
#else
  for (int64_t k = 0; k < count; ++k) to[k] = values[k];
#endif
}

// kLanes values from place ``first`` on, as floats; ``left`` of them are there, the others are zeros.
inline Vec floats(Bytes bytes, int bits, int64_t first, int64_t left) {
  if (bits == 32) {
    return load_some(reinterpret_cast<const float*>(bytes.data) + first, left);
  }
  if (bits == 16) {
    uint16_t halves[kLanes] = {};
    if (left >= kLanes) {
      std::memcpy(halves, bytes.data + 2 * first, sizeof halves);
    } else {
      for (int64_t k = 0; k < left; ++k) std::memcpy(&halves[k], bytes.data + 2 * (first + k), 2);
    }
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
#else
    Vec values;
    for (int k = 0; k < kLanes; ++k) values[k] = half_to_float(halves[k]);
    return values;
#endif
  }
  return __builtin_convertvector(levels(bytes, bits, first), Vec);
}

// to[j] += factor where bit j is set, else -= factor, for ``count`` bits.
HFH_INLINE void add_signs(Bytes bytes, int64_t count, float factor, float* to) {
#if defined(__AVX512F__)
  const __m512 plus = _mm512_set1_ps(factor), minus = _mm512_set1_ps(-factor);
  for (int64_t j = 0; j < count; j += 32) {
    const uint32_t bits = window(bytes, j);
    for (int64_t k = j; k < least(j + 32, count); k += 16) {
      const Vec values = (Vec)_mm512_mask_mov_ps(minus, static_cast<__mmask16>(bits >> (k - j)), plus);
      store_some(to + k, load_some(to + k, count - k) + values, count - k);
    }
  }
#else
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec values = __builtin_convertvector(levels(bytes, 1, j), Vec) * factor;
    store_some(to + j, load_some(to + j, count - j) + values, count - j);
  }
#endif
}

// to[j] += factor * value for ``count`` values from place ``first`` on; the product is rounded first, as everywhere.
inline void add_values(Bytes bytes, int bits, int64_t first, int64_t count, float factor, float* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec values = floats(bytes, bits, first + j, count - j) * factor;
    store_some(to + j, load_some(to + j, count - j) + values, count - j);
  }
}

// to[j] = factor * value.
inline void set_values(Bytes bytes, int bits, int64_t first, int64_t count, float factor, float* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    store_some(to + j, floats(bytes, bits, first + j, count - j) * factor, count - j);
  }
}

// to[j] += sign * level: exact, so in any order. ``to`` has room for kLanes - 1 more.
inline void add_levels(Bytes bytes, int bits, int64_t first, int64_t count, int32_t sign, int32_t* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    IntVec sums;
    std::memcpy(&sums, to + j, sizeof sums);
    sums += levels(bytes, bits, first + j) * sign;
    const size_t some = static_cast<size_t>(least(kLanes, count - j));
    if (some == kLanes) {
      std::memcpy(to + j, &sums, sizeof sums);
    } else {
      std::memcpy(to + j, &sums, some * 4);
    }
  }
}

// Ask the memory for a row of ``bytes`` bytes.
HFH_INLINE void prefetch_bytes(const uint8_t* from, int64_t bytes) {
  prefetch(from);
  for (int64_t b = 64; b < least(bytes, 1024); b += 64) prefetch(from + b);
  if (reinterpret_cast<uintptr_t>(from) % 64 + static_cast<uintptr_t>(bytes - 1) % 64 >= 64) prefetch(from + bytes - 1);
}

inline void prefetch_row(const Values& values, int64_t row) {
  const int64_t bytes = values.row_bytes();
  prefetch_bytes(values.bytes.data + row * bytes, bytes);
}

HFH_INLINE Bytes row_of(const Values& values, int64_t row) {
  const int64_t bytes = values.row_bytes();
  return {values.bytes.data + row * bytes, bytes};
}

HFH_INLINE float scale_of(const Values& values, int64_t row) {
  if (values.bits >= 16) return 1.0f;
  return values.row_scale ? half_to_float(values.row_scale[row]) : values.scale;
}

}  // namespace HFH_ISA
}  // namespace hfh
