// float16: reading and writing, rounded to nearest even, with F16C where there is AVX2.
#pragma once

#include <cstdint>
#include <cstring>

#include "line.hpp"

namespace hfh {

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00 | static_cast<uint16_t>((bits >> 13) & 0x3FF);  // NaN
  if (bits >= 0x47800000) return sign | 0x7C00;                                              // too large, or infinite
  if (bits < 0x38800000) {  // subnormal: the sum with 0.5 has the wanted bits at its end, rounded by the machine
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, 4);
    return sign | static_cast<uint16_t>(shifted - 0x3F000000);
  }
  const uint32_t odd = (bits >> 13) & 1;
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xFFF + odd) >> 13);
}

#ifdef HFH_X86
__attribute__((target("avx2,f16c"))) inline void to_half_f16c(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), eight);
  }
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}
#endif

inline void to_half(Simd simd, const float* from, int64_t count, uint16_t* to) {
#ifdef HFH_X86
  if (simd != Simd::kPortable && __builtin_cpu_supports("f16c")) return to_half_f16c(from, count, to);
#endif
  (void)simd;
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_half(from[i]);
}

}  // namespace hfh
