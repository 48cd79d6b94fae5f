// Counting bits: in how many of U words an entry's bit is set, as bit planes, and what the counts are worth as floats.
#pragma once

#include "half.hpp"
#include "kernels.hpp"

namespace hfh {
namespace HFH_ISA {

// What an entry is worth when c of the U words have its bit set: (2c - U) * scale. Sums begin at zero, so -0 becomes +0.
struct Palette {
  alignas(64) float wide[32];
  alignas(64) uint16_t half[32];
  float scale;
  int hashes;

  Palette(int64_t num_hashes, float by) : scale(by), hashes(static_cast<int>(num_hashes)) {
    for (int c = 0; c < 32; ++c) wide[c] = static_cast<float>(2 * c - hashes) * by + 0.0f;
    for (int c = 0; c < 32; ++c) half[c] = float_to_half(wide[c]);
  }

  // Whether planes count the words of each of 32 entries in two places, j and 32 + j.
  bool folded() const { return hashes == 16; }
};

// Words, one at a time or many in a register, added bit by bit.
template <class Word>
inline Word sum3(Word a, Word b, Word c) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(Word) == 64) return (Word)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#endif
  return a ^ b ^ c;
}

template <class Word>
inline Word carry3(Word a, Word b, Word c) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(Word) == 64) return (Word)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0xE8);
#endif
  return (a & b) | ((a ^ b) & c);
}

// The bits of each entry's count of set words, lowest plane first.
template <class Word>
inline void count_planes4(Word v0, Word v1, Word v2, Word v3, Word* plane) {
  const Word sum = sum3(v0, v1, v2), carry = carry3(v0, v1, v2), carry2 = sum & v3;
  plane[0] = sum ^ v3, plane[1] = carry ^ carry2, plane[2] = carry & carry2, plane[3] = Word{};
}

template <class Word>
inline void count_planes8(const Word* v, Word* plane) {
  const Word s1 = sum3(v[0], v[1], v[2]), k1 = carry3(v[0], v[1], v[2]), s2 = sum3(v[3], v[4], v[5]);
  const Word k2 = carry3(v[3], v[4], v[5]), s3 = sum3(s1, s2, v[6]), k3 = carry3(s1, s2, v[6]), k4 = s3 & v[7];
  const Word t = sum3(k1, k2, k3), m1 = carry3(k1, k2, k3), m2 = t & k4;
  plane[0] = s3 ^ v[7], plane[1] = t ^ k4, plane[2] = m1 ^ m2, plane[3] = m1 & m2;
}

#if !defined(__AVX2__)
// The words of one line, rotated and negated, as the planes of its 64 entries (U = 8), of two times 64 (U = 4), or of the even
// and the odd words of its 32 entries, side by side (U = 16).
inline void planes_of(const uint8_t* line, const uint64_t (&fields)[2], uint64_t sign_mask, int64_t hashes, uint64_t (&plane)[2][4]) {
  uint64_t word[8], v[8] = {};
  std::memcpy(word, line, 64);
  for (int u = 0; u < hashes; ++u) {
    const unsigned field = static_cast<unsigned>(fields[u / 8] >> (u % 8 * 8)) & 0xFF, by = field & 63;
    const uint64_t negate = 0 - static_cast<uint64_t>((field & sign_mask) >> 7);
    if (hashes == 16) {
      const uint32_t narrow = static_cast<uint32_t>(word[u / 2] >> (u % 2 * 32)), turn = by & 31;
      const uint32_t turned = ((narrow >> turn) | (narrow << ((32 - turn) & 31))) ^ static_cast<uint32_t>(negate);
      v[u / 2] |= static_cast<uint64_t>(turned) << (u % 2 * 32);
    } else if (hashes == 8) {
      v[u] = ((word[u] >> by) | (word[u] << ((64 - by) & 63))) ^ negate;
    } else {  // a rotation of 128 slots: entry 0 is bit `rotation` of the two pieces
      const uint64_t low = word[2 * u + (field >> 6 & 1)], high = word[2 * u + (~field >> 6 & 1)];
      v[u] = (by ? (low >> by) | (high << (64 - by)) : low) ^ negate;
      v[4 + u] = (by ? (high >> by) | (low << (64 - by)) : high) ^ negate;
    }
  }
  if (hashes != 4) {
    count_planes8(v, plane[0]);
  } else {
    count_planes4(v[0], v[1], v[2], v[3], plane[0]);
    count_planes4(v[4], v[5], v[6], v[7], plane[1]);
  }
}

#endif

inline int count_of(const uint64_t* plane, int64_t stride, int j, bool folded = false) {
  int count = 0;
  for (int p = 0; p < 4; ++p) count |= static_cast<int>((plane[p * stride] >> j) & 1) << p;
  return folded ? count + count_of(plane, stride, 32 + j) : count;
}

#if defined(__AVX512BW__)
// The counts of 64 entries, byte by byte.
inline __m512i counts(const uint64_t* plane, int64_t stride) {
  __m512i count = _mm512_maskz_mov_epi8(plane[0], _mm512_set1_epi8(1));
  for (int p = 1; p < 4; ++p) count = _mm512_mask_add_epi8(count, plane[p * stride], count, _mm512_set1_epi8(1 << p));
  return count;
}

// The counts of 32 entries that are counted in two places.
inline __m256i folded_counts(const uint64_t* plane, int64_t stride) {
  const __m512i count = counts(plane, stride);
  return _mm256_add_epi8(_mm512_castsi512_si256(count), _mm512_extracti64x4_epi64(count, 1));
}
#elif defined(__AVX2__)
// -count of the 32 entries from entry j on, byte by byte: compares give -1 where a bit is set.
inline __m256i minus_counts(const uint64_t* plane, int64_t stride, int64_t j) {
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i bytes =
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  __m256i minus = _mm256_setzero_si256();
  for (int p = 3; p >= 0; --p) {
    const __m256i spread_bits = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(plane[p * stride] >> j)), bytes);
    minus = _mm256_add_epi8(_mm256_add_epi8(minus, minus), _mm256_cmpeq_epi8(_mm256_and_si256(spread_bits, bit), bit));
  }
  return minus;
}
#endif

#if defined(__AVX512BW__)
// What 32 entries that are counted in two places are worth, in two registers of ``values`` by count: take(s, vector) as below.
template <class Take>
inline void look_up_folded(const uint64_t* plane, int64_t stride, __m512 low, __m512 high, const Take& take) {
  const __m256i count = folded_counts(plane, stride);
  take(0, _mm512_permutex2var_ps(low, _mm512_cvtepu8_epi32(_mm256_castsi256_si128(count)), high));
  take(1, _mm512_permutex2var_ps(low, _mm512_cvtepu8_epi32(_mm256_extracti128_si256(count, 1)), high));
}

// What 64 entries are worth, in a register of 16 ``values`` by count: take(s, vector) for each vector of 16 entries.
template <class Take>
inline void look_up(const uint64_t* plane, int64_t stride, __m512 values, const Take& take) {
  __m512i count = counts(plane, stride);
  // Entry 16s + k goes to byte 4k + s: then byte s of every double word holds the counts of one vector of 16 entries.
  const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  count = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(across, count), within);
  for (int s = 0; s < 4; ++s) {
    take(s, _mm512_permutexvar_ps(count, values));  // looks at the lowest four bits
    count = _mm512_srli_epi32(count, 8);
  }
}
#endif

// Write ``used`` <= 64 entries whose counts lie in planes ``stride`` words apart; folded ones: see Palette.
template <bool kStreamed, bool kFolded>
inline void widen(const uint64_t* plane, int64_t stride, int64_t used, const Palette& palette, float* out) {
#if defined(__AVX512BW__)
  const auto write = [&](int s, __m512 row) {
    const int64_t left = used - 16 * s;
    if (left >= 16) {
      kStreamed ? stream(out + 16 * s, (Vec)row) : store(out + 16 * s, (Vec)row);
    } else if (left > 0) {
      _mm512_mask_storeu_ps(out + 16 * s, static_cast<__mmask16>((1u << left) - 1), row);
    }
  };
  if (kFolded) {
    look_up_folded(plane, stride, _mm512_load_ps(palette.wide), _mm512_load_ps(palette.wide + 16), write);
  } else {
    look_up(plane, stride, _mm512_load_ps(palette.wide), write);
  }
#else
  int64_t j = 0;
#if defined(__AVX2__)
  const __m256 scales = _mm256_set1_ps(palette.scale);
  for (; j + 32 <= used; j += 32) {
    __m256i minus = minus_counts(plane, stride, j);
    if (kFolded) minus = _mm256_add_epi8(minus, minus_counts(plane, stride, 32));
    const __m256i level =
        _mm256_sub_epi8(_mm256_set1_epi8(static_cast<char>(-palette.hashes)), _mm256_add_epi8(minus, minus));
    const __m128i half[2] = {_mm256_castsi256_si128(level), _mm256_extracti128_si256(level, 1)};
    for (int e = 0; e < 4; ++e) {
      const __m128i eight = e & 1 ? _mm_srli_si128(half[e >> 1], 8) : half[e >> 1];
      const __m256 row = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), scales);
      const Vec values = (Vec)_mm256_add_ps(row, _mm256_setzero_ps());
      kStreamed ? stream(out + j + 8 * e, values) : store(out + j + 8 * e, values);
    }
  }
#endif
  for (; j < used; ++j) out[j] = palette.wide[count_of(plane, stride, static_cast<int>(j), kFolded)];
#endif
}

template <bool kStreamed, bool kFolded>
inline void widen(const uint64_t* plane, int64_t stride, int64_t used, const Palette& palette, uint16_t* out) {
#if defined(__AVX512BW__)
  const __m512i values = _mm512_load_si512(palette.half);
  const __mmask64 written = ~0ULL >> (64 - used);
  if (kFolded) {
    const __m512i places = _mm512_cvtepu8_epi16(folded_counts(plane, stride));
    return _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(written), _mm512_permutexvar_epi16(places, values));
  }
  const __m512i count = counts(plane, stride);
  const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(count));
  const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(count, 1));
  _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(written), _mm512_permutexvar_epi16(low, values));
  _mm512_mask_storeu_epi16(out + 32, static_cast<__mmask32>(written >> 32), _mm512_permutexvar_epi16(high, values));
#elif defined(__F16C__)
  float wide[64];
  widen<false, kFolded>(plane, stride, used, palette, wide);
  to_half(wide, used, out);
#else
  for (int64_t j = 0; j < used; ++j) out[j] = palette.half[count_of(plane, stride, static_cast<int>(j), kFolded)];
#endif
}

}  // namespace HFH_ISA
}  // namespace hfh
