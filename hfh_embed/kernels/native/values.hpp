// Reading stored values: few-bit codes, each the odd integer level 2c - (2**bits - 1), and floats.
//
// Version 1 read value by value. Version 2, here, takes 32 bits of codes from an unaligned window at once and leaves the
// rest to the compiler's vectors.
#pragma once

#include "half.hpp"
#include "kernels.hpp"

namespace hfh {
namespace HFH_ISA {

// 32 bits from bit ``bit`` on; what lies behind the end reads as zeros.
inline uint32_t window(Bytes bytes, int64_t bit) {
  const int64_t byte = bit >> 3, left = bytes.size - byte;
  uint64_t word = 0;
  if (left >= 8) {
    std::memcpy(&word, bytes.data + byte, 8);
  } else if (left > 0) {
    std::memcpy(&word, bytes.data + byte, static_cast<size_t>(left));
  }
  return static_cast<uint32_t>(word >> (bit & 7));
}

// add(j, code) for the ``count`` codes from place ``first`` on.
template <int kBits, class Add>
inline void each_code(Bytes bytes, int64_t first, int64_t count, const Add& add) {
  constexpr int kMask = (1 << kBits) - 1;
  if constexpr (kBits == 8) {
    const uint8_t* codes = bytes.data + first;
    for (int64_t j = 0; j < count; ++j) add(j, static_cast<int>(codes[j]));
  } else {
    constexpr int kCodes = 32 / kBits;
    int64_t j = 0, bit = first * kBits;
    for (; j + kCodes <= count; j += kCodes, bit += 32) {
      const uint32_t word = window(bytes, bit);
      for (int k = 0; k < kCodes; ++k) add(j + k, static_cast<int>((word >> (k * kBits)) & kMask));
    }
    const uint32_t word = j < count ? window(bytes, bit) : 0;
    for (int k = 0; j + k < count; ++k) add(j + k, static_cast<int>((word >> (k * kBits)) & kMask));
  }
}

// to[j] += sign * level: exact, so in any order.
template <int kBits>
inline void add_levels(Bytes bytes, int64_t first, int64_t count, int32_t sign, int32_t* to) {
  const int32_t twice = 2 * sign, last = sign * ((1 << kBits) - 1);
  each_code<kBits>(bytes, first, count, [&](int64_t j, int code) { to[j] += twice * code - last; });
}

inline void add_levels(Bytes bytes, int bits, int64_t first, int64_t count, int32_t sign, int32_t* to) {
  switch (bits) {
    case 1: return add_levels<1>(bytes, first, count, sign, to);
    case 2: return add_levels<2>(bytes, first, count, sign, to);
    case 4: return add_levels<4>(bytes, first, count, sign, to);
    default: return add_levels<8>(bytes, first, count, sign, to);
  }
}

// use(j, value) for ``count`` values from place ``first`` on, as floats: levels where they are few-bit.
template <class Use>
inline void each_value(Bytes bytes, int bits, int64_t first, int64_t count, const Use& use) {
  switch (bits) {
    case 1: return each_code<1>(bytes, first, count, [&](int64_t j, int c) { use(j, static_cast<float>(2 * c - 1)); });
    case 2: return each_code<2>(bytes, first, count, [&](int64_t j, int c) { use(j, static_cast<float>(2 * c - 3)); });
    case 4: return each_code<4>(bytes, first, count, [&](int64_t j, int c) { use(j, static_cast<float>(2 * c - 15)); });
    case 8: return each_code<8>(bytes, first, count, [&](int64_t j, int c) { use(j, static_cast<float>(2 * c - 255)); });
    case 16: {
      const uint8_t* from = bytes.data + 2 * first;
      int64_t j = 0;
#if defined(__F16C__)
      for (; j + 8 <= count; j += 8) {
        float eight[8];
        _mm256_storeu_ps(eight, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * j))));
        for (int k = 0; k < 8; ++k) use(j + k, eight[k]);
      }
#endif
      for (; j < count; ++j) {
        uint16_t half;
        std::memcpy(&half, from + 2 * j, 2);
        use(j, half_to_float(half));
      }
      return;
    }
    default: {
      const uint8_t* from = bytes.data + 4 * first;
      for (int64_t j = 0; j < count; ++j) {
        float value;
        std::memcpy(&value, from + 4 * j, 4);
        use(j, value);
      }
    }
  }
}

// Ask the memory for a row of packed values.
inline void prefetch_row(const Values& values, int64_t row) {
  const int64_t bytes = values.row_bytes();
  const uint8_t* from = values.bytes.data + row * bytes;
  for (int64_t b = 0; b < least(bytes, 1024); b += 64) prefetch(from + b);
  prefetch(from + bytes - 1);
}

// use(j, value) for one row of packed values with its scale.
template <class Use>
inline void each_scaled(const Values& values, int64_t row, const Use& use) {
  const Bytes from{values.bytes.data + row * values.row_bytes(), values.bytes.size - row * values.row_bytes()};
  if (values.bits >= 16) return each_value(from, values.bits, 0, values.count, use);
  const float scale = values.row_scale ? half_to_float(values.row_scale[row]) : values.scale;
  each_value(from, values.bits, 0, values.count, [&](int64_t j, float level) { use(j, level * scale); });
}

}  // namespace HFH_ISA
}  // namespace hfh
