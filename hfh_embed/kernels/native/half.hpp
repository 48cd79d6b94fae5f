// float16: reading and writing, rounded to nearest even, with F16C where the instruction set has it.
#pragma once

#include "vector.hpp"

namespace hfh {
namespace HFH_ISA {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F, mantissa = half & 0x3FF;
  if (exponent == 0x1F) return bits_to_float(sign | 0x7F800000 | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // subnormal: mantissa * 2**-24, exact
  return bits_to_float(float_to_bits(value) | sign);
}

inline uint16_t float_to_half(float value) {
  uint32_t bits = float_to_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00 | static_cast<uint16_t>((bits >> 13) & 0x3FF);  // NaN
  if (bits >= 0x47800000) return sign | 0x7C00;                                              // too large, or infinite
  if (bits < 0x38800000) {  // subnormal: the sum with 0.5 has the wanted bits at its end, rounded by the machine
    return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(bits) + 0.5f) - 0x3F000000);
  }
  const uint32_t odd = (bits >> 13) & 1;
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xFFF + odd) >> 13);
}

inline void to_half(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), eight);
  }
#endif
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}

}  // namespace HFH_ISA
}  // namespace hfh
