// Rows of a 1-bit pool in rotated words: one 64-byte line a chunk, the form that a ratio picks by default.
//
// Version 1, fetch.hpp's general loop: bit by bit, about 1.5 us for a row of 64.
// Version 2, here: a word is rotated and negated whole, the words are summed as bit planes (carry-save adders, 64 entries
// at a time), and the planes are widened to floats with AVX-512 masks or AVX2 compares. Lines are hashed and prefetched
// some rows ahead in a ring, so that the memory's latency is hidden. benchmarks/lookup.py has what it gained.
#pragma once

#include <cstdint>
#include <cstring>

#include "fetch.hpp"

// The portable form is also the fallback where a compiler is not asked for more.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HFH_X86 1
#include <immintrin.h>
#endif

namespace hfh {

enum class Simd : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

inline Simd best_simd() {
#ifdef HFH_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return Simd::kAvx512;
  if (__builtin_cpu_supports("avx2")) return Simd::kAvx2;
#endif
  return Simd::kPortable;
}

inline uint64_t rotate_right(uint64_t x, unsigned by) { return (x >> by) | (x << ((64 - by) & 63)); }

// 2c - kHashes for every entry, where c counts in how many of kHashes words its bit is set: as four planes of c.
template <int kHashes>
struct Planes {
  static constexpr int kCount = kHashes == 8 ? 4 : 3;
  uint64_t plane[4];
};

inline void add3(uint64_t a, uint64_t b, uint64_t c, uint64_t& sum, uint64_t& carry) {
  const uint64_t x = a ^ b;
  sum = x ^ c;
  carry = (a & b) | (x & c);
}

inline Planes<4> count_planes(const uint64_t (&v)[4]) {
  uint64_t sum, carry;
  add3(v[0], v[1], v[2], sum, carry);
  const uint64_t carry2 = sum & v[3];
  return {{sum ^ v[3], carry ^ carry2, carry & carry2, 0}};
}

inline Planes<8> count_planes(const uint64_t (&v)[8]) {
  uint64_t s1, k1, s2, k2, s3, k3, t, m1;
  add3(v[0], v[1], v[2], s1, k1);
  add3(v[3], v[4], v[5], s2, k2);
  add3(s1, s2, v[6], s3, k3);
  const uint64_t k4 = s3 & v[7];
  add3(k1, k2, k3, t, m1);
  const uint64_t m2 = t & k4;
  return {{s3 ^ v[7], t ^ k4, m1 ^ m2, m1 & m2}};
}

// Write ``used`` <= 64 entries of one row: level * scale, rounded once as everywhere.
template <int kHashes>
inline void widen_portable(const Planes<kHashes>& c, int64_t used, float scale, float* out) {
  for (int64_t j = 0; j < used; ++j) {
    int count = 0;
    for (int p = 0; p < Planes<kHashes>::kCount; ++p) count |= static_cast<int>((c.plane[p] >> j) & 1) << p;
    out[j] = static_cast<float>(2 * count - kHashes) * scale + 0.0f;
  }
}

#ifdef HFH_X86
template <int kHashes>
__attribute__((target("avx2"))) inline void widen_avx2(const Planes<kHashes>& c, int64_t used, float scale, float* out) {
  if (used < 64) return widen_portable<kHashes>(c, used, scale, out);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3,
                                          3, 3, 3);
  const __m256 scales = _mm256_set1_ps(scale);
  for (int half = 0; half < 2; ++half) {
    __m256i minus = _mm256_setzero_si256();  // -count, byte by byte: compares give -1 where a bit is set
    for (int p = Planes<kHashes>::kCount - 1; p >= 0; --p) {
      const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(c.plane[p] >> (32 * half))), spread);
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
      minus = _mm256_add_epi8(_mm256_add_epi8(minus, minus), set);
    }
    const __m256i level = _mm256_sub_epi8(_mm256_set1_epi8(-kHashes), _mm256_add_epi8(minus, minus));
    const __m128i low = _mm256_castsi256_si128(level), high = _mm256_extracti128_si256(level, 1);
    float* row = out + 32 * half;
    const auto write = [&](float* to, __m128i eight) __attribute__((target("avx2"))) {
      const __m256 row8 = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), scales);
      _mm256_storeu_ps(to, _mm256_add_ps(row8, _mm256_setzero_ps()));
    };
    write(row, low);
    write(row + 8, _mm_srli_si128(low, 8));
    write(row + 16, high);
    write(row + 24, _mm_srli_si128(high, 8));
  }
}

template <int kHashes>
__attribute__((target("avx512f,avx512bw"))) inline void widen_avx512(const Planes<kHashes>& c, int64_t used, float scale,
                                                                     float* out) {
  const __m512 scales = _mm512_set1_ps(scale);
  for (int64_t first = 0; first < used; first += 16) {
    __m512i level = _mm512_set1_epi32(-kHashes);
    for (int p = 0; p < Planes<kHashes>::kCount; ++p) {
      const __mmask16 set = static_cast<__mmask16>(c.plane[p] >> first);
      level = _mm512_mask_add_epi32(level, set, level, _mm512_set1_epi32(2 << p));
    }
    const __m512 row = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(level), scales), _mm512_setzero_ps());
    if (used - first >= 16) {
      _mm512_storeu_ps(out + first, row);
    } else {
      _mm512_mask_storeu_ps(out + first, static_cast<__mmask16>((1u << (used - first)) - 1), row);
    }
  }
}
#endif

// The rotated, negated words of one line, for the 64 entries that begin at entry 64 * part.
template <int kHashes>
inline void turn_words(const uint8_t* line, uint64_t fields, uint64_t sign_mask, int part, uint64_t (&v)[kHashes]) {
  constexpr int kWords64 = 8 / kHashes;  // 64-bit pieces of a word: 1 or 2
  for (int u = 0; u < kHashes; ++u) {
    const unsigned field = static_cast<unsigned>(fields >> (8 * u)) & 0xFF;
    const uint64_t negate = 0 - static_cast<uint64_t>((field & sign_mask) >> 7);
    uint64_t turned;
    if (kWords64 == 1) {
      uint64_t word;
      std::memcpy(&word, line + 8 * u, 8);
      turned = rotate_right(word, field & 63);
    } else {  // a rotation of 128 slots: the piece begins at bit 64 * part + rotation
      uint64_t word[2];
      std::memcpy(word, line + 16 * u, 16);
      const unsigned rotation = field & 127, by = rotation & 63, piece = (part + (rotation >> 6)) & 1;
      turned = by ? (word[piece] >> by) | (word[piece ^ 1] << (64 - by)) : word[piece];
    }
    v[u] = turned ^ negate;
  }
}

// What line_rows takes: a 1-bit pool, words of 512 / kHashes slots, kHashes of 4 or 8.
inline bool is_line_form(const Shared& shared, int bits) {
  return bits == 1 && shared.locality == Locality::kWords && (shared.num_hashes == 4 || shared.num_hashes == 8) &&
         shared.num_hashes * shared.chunk_size == kLineBits;
}

// Always inlined, so that it is compiled for the instructions of the function that calls it.
template <int kHashes, class Widen>
__attribute__((always_inline)) inline void line_rows_with(const uint8_t* pool, const Shared& shared, float scale, const int64_t* ids, int64_t count, float* out,
                           const Widen widen) {
  constexpr int64_t kAhead = 24, kRing = 32;
  struct Place {
    const uint8_t* line;
    uint64_t fields;
  } ring[kRing];
  const int64_t chunks = shared.num_chunks(), total = count * chunks, size = shared.chunk_size;
  const uint64_t lines = static_cast<uint64_t>(shared.slots / kLineBits), sign_mask = shared.signs ? 0x80 : 0;
  int64_t next_id = 0, next_chunk = 0;
  const auto look_ahead = [&](int64_t n) {
    const uint64_t state = id_state(shared.key, ids[next_id]);
    Place& place = ring[n % kRing];
    place.line = pool + 64 * below(draw(state, 2 * next_chunk), lines);
    place.fields = draw(state, 2 * next_chunk + 1);
    __builtin_prefetch(place.line);
    if (++next_chunk == chunks) next_chunk = 0, ++next_id;
  };
  for (int64_t n = 0; n < std::min(kAhead, total); ++n) look_ahead(n);
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < chunks; ++c, ++n) {
      if (n + kAhead < total) look_ahead(n + kAhead);
      const Place place = ring[n % kRing];
      const int64_t used = std::min(size, shared.dim - c * size);
      float* row = out + i * shared.dim + c * size;
      for (int part = 0; 64 * part < used; ++part) {
        uint64_t v[kHashes];
        turn_words<kHashes>(place.line, place.fields, sign_mask, part, v);
        widen(count_planes(v), std::min<int64_t>(64, used - 64 * part), scale, row + 64 * part);
      }
    }
  }
}

template <int kHashes>
void line_rows_portable(const uint8_t* pool, const Shared& shared, float scale, const int64_t* ids, int64_t count, float* out) {
  line_rows_with<kHashes>(pool, shared, scale, ids, count, out, [](const Planes<kHashes>& c, int64_t used, float s, float* to) {
    widen_portable<kHashes>(c, used, s, to);
  });
}

#ifdef HFH_X86
template <int kHashes>
__attribute__((target("avx2"))) void line_rows_avx2(const uint8_t* pool, const Shared& shared, float scale, const int64_t* ids,
                                                    int64_t count, float* out) {
  line_rows_with<kHashes>(pool, shared, scale, ids, count, out,
                          [](const Planes<kHashes>& c, int64_t used, float s, float* to) __attribute__((target("avx2"))) {
                            widen_avx2<kHashes>(c, used, s, to);
                          });
}

template <int kHashes>
__attribute__((target("avx512f,avx512bw"))) void line_rows_avx512(const uint8_t* pool, const Shared& shared, float scale,
                                                                  const int64_t* ids, int64_t count, float* out) {
  line_rows_with<kHashes>(
      pool, shared, scale, ids, count, out,
      [](const Planes<kHashes>& c, int64_t used, float s, float* to) __attribute__((target("avx512f,avx512bw"))) {
        widen_avx512<kHashes>(c, used, s, to);
      });
}
#endif

template <int kHashes>
void line_rows(Simd simd, const uint8_t* pool, const Shared& shared, float scale, const int64_t* ids, int64_t count, float* out) {
#ifdef HFH_X86
  if (simd == Simd::kAvx512) return line_rows_avx512<kHashes>(pool, shared, scale, ids, count, out);
  if (simd == Simd::kAvx2) return line_rows_avx2<kHashes>(pool, shared, scale, ids, count, out);
#endif
  (void)simd;
  line_rows_portable<kHashes>(pool, shared, scale, ids, count, out);
}

}  // namespace hfh
