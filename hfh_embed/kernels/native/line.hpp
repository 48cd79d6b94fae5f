// Rows of a 1-bit pool in rotated words: one 64-byte line a chunk, the form that a ratio picks by default.
//
// Version 1, the general loop bit by bit: about 1.5 us for a row of 64.
// Version 2: a word is rotated and negated whole, the words are summed as bit planes (carry-save adders), the planes are
// widened to floats; lines are hashed and prefetched 24 rows ahead in a ring: 25 ns, of which the hash took a third.
// Version 3, here: eight rows at a time. Their hashes are vectors, a line is one register whose words rotate together, a
// transposition makes the carry-save adders work on eight rows at once, and the nine possible values of an entry lie in one
// register that the counts permute, which is also the float16 form: 8 to 10 ns (AVX2, four rows at a time: 16 to
// 20; portable, row by row: 125). Sixteen words of 32 slots go through the same adders in pairs, as eight of 64, and the two counts
// that an entry then has are added byte by byte. Where a call asks for three times as many ids as a table has, each id's planes are
// made once and kept in the cache: 5 to 6 ns a row in bags of five instead of 9.
// What a group takes is one function for each number of words: as functions of their own, hash and sum took 1.5 ns a row more.
#pragma once

#include "hashing.hpp"
#include "planes.hpp"
#include "values.hpp"

namespace hfh {
namespace HFH_ISA {

constexpr int kGroup = 8;  // units, of one line each, that are hashed and summed together

// The shared rows of many ids in order, hashed and prefetched ahead of being written.
class LineStream {
 public:
  // Of a table of ``num_embeddings`` ids. Rows of ``own`` are asked for together with the ids' lines.
  LineStream(const Shared& shared, const uint8_t* pool, float scale, const int64_t* ids, int64_t count, int64_t num_embeddings,
             const Values* own = nullptr)
      : shared_(shared), pool_(pool), ids_(ids), own_(own), num_embeddings_(num_embeddings), palette_(shared.num_hashes, scale), chunks_(shared.num_chunks()),
        draws_(shared.num_hashes == 16 ? 3 : 2), total_(count * chunks_), lines_(static_cast<uint32_t>(shared.slots / kLineBits)),
        sign_mask_(shared.signs ? 0x80 : 0) {
    repeated_ = asks_often();
    if (repeated_) make_all();
    for (int g = 0; g < kAhead && !repeated_; ++g) look_ahead();
  }

  // The next kGroup units as planes: planes[part][p][r] is plane p of unit r.
  HFH_INLINE void take_planes(uint64_t (&planes)[2][4][kGroup]) {
    if (repeated_) return copy(planes);
    look_ahead();
    sum(ring_[taken_++ % kRing], planes);
  }

  // Write the next rows, ``stride`` apart. All takes but the last take a multiple of kGroup rows.
  template <bool kStreamed = false, class Entry>
  void take(int64_t rows, Entry* out, int64_t stride) {
    palette_.folded() ? take_as<kStreamed, true>(rows, out, stride) : take_as<kStreamed, false>(rows, out, stride);
  }

 private:
  template <bool kStreamed, bool kFolded, class Entry>
  void take_as(int64_t rows, Entry* out, int64_t stride) {
    const int64_t size = shared_.chunk_size, parts = most(1, size / 64);
    int64_t chunk = 0;
    for (int64_t left = rows * chunks_; left > 0; left -= kGroup) {
      alignas(64) uint64_t planes[2][4][kGroup];
      take_planes(planes);
      const int64_t valid = least(kGroup, left);
      for (int64_t r = 0; r < valid; ++r) {
        const int64_t used = least(size, shared_.dim - chunk * size);
        for (int64_t part = 0; part < parts && 64 * part < used; ++part) {
          widen<kStreamed, kFolded>(&planes[part][0][r], kGroup, least(64, used - 64 * part), palette_, out + chunk * size + 64 * part);
        }
        if (++chunk == chunks_) chunk = 0, out += stride;
      }
    }
  }

  static constexpr int64_t kMostRepeated = 2048;  // ids whose planes the first or second cache holds

  // Whether each id of a small table is asked for some times, so that its planes are made once.
  __attribute__((noinline)) bool asks_often() const {
    if (num_embeddings_ > kMostRepeated || 3 * num_embeddings_ > total_ || chunks_ != 1 || shared_.num_hashes == 4) return false;
    bool known = true;
    for (int64_t i = 0; i < total_; ++i) known &= static_cast<uint64_t>(ids_[i]) < static_cast<uint64_t>(num_embeddings_);
    return known;
  }

  __attribute__((noinline)) void make_all() {
    int64_t every[kMostRepeated];
    for (int64_t id = 0; id < num_embeddings_; ++id) every[id] = id;
    LineStream stream(shared_, pool_, palette_.scale, every, num_embeddings_, kMostRepeated + 1);
    alignas(64) uint64_t planes[2][4][kGroup];
    for (int64_t id = 0; id < num_embeddings_; ++id) {
      if (id % kGroup == 0) stream.take_planes(planes);
      for (int p = 0; p < 4; ++p) all_[id][p] = planes[0][p][id % kGroup];
    }
  }

  // Ids are looked at once more than they were checked; whatever they are by now, nothing outside is read.
  __attribute__((noinline)) void copy(uint64_t (&planes)[2][4][kGroup]) {
    for (int j = 0; j < kGroup; ++j, ++next_) {
      const uint64_t id = next_ < total_ ? static_cast<uint64_t>(ids_[next_]) : 0;
      const uint64_t* from = all_[id < static_cast<uint64_t>(num_embeddings_) ? id : 0];
      for (int p = 0; p < 4; ++p) planes[0][p][j] = from[p];
    }
  }

  static constexpr int kAhead = 3, kRing = 4;
  struct Group {
    const uint8_t* line[kGroup];
    uint64_t fields[2][kGroup];  // the second for words from the ninth on
  };

  // Hash the next group, and ask the memory for its lines. Behind the last unit anything valid is repeated.
  HFH_INLINE void look_ahead() {
    if (next_ >= total_) return;
    Group& group = ring_[hashed_++ % kRing];
    if (chunks_ == 1 && next_ + kGroup <= total_) {
      const auto none = [](int) { return uint64_t{0}; };
      draws_ == 2 ? hash<2>(ids_ + next_, none, group) : hash<3>(ids_ + next_, none, group);
      next_ += kGroup, next_id_ += kGroup;
      return;
    }
    int64_t id[kGroup];
    uint64_t first[kGroup];
    for (int j = 0; j < kGroup; ++j, ++next_) {
      id[j] = ids_[next_ < total_ ? next_id_ : 0];
      first[j] = static_cast<uint64_t>(draws_ * next_chunk_);
      if (++next_chunk_ == chunks_) next_chunk_ = 0, ++next_id_;
    }
    const auto own = [&](int j) { return first[j]; };
    draws_ == 2 ? hash<2>(id, own, group) : hash<3>(id, own, group);
  }

  // Draws first(j) and on of each id: its line, and its fields.
  template <int kDraws, class First>
  HFH_INLINE void hash(const int64_t* ids, const First& first, Group& group) {
    uint64_t line[kGroup];
    for (int j = 0; j < kGroup; ++j) {
      const uint64_t state = id_state(shared_.key, ids[j]);
      line[j] = static_cast<uint64_t>(static_cast<uint32_t>(draw(state, first(j)) >> 32)) * lines_ >> 32;
      group.fields[0][j] = draw(state, first(j) + 1);
      if (kDraws == 3) group.fields[1][j] = draw(state, first(j) + 2);
    }
    for (int j = 0; j < kGroup; ++j) {
      group.line[j] = pool_ + 64 * line[j];
      prefetch(group.line[j]);
    }
    if (own_) ask_for_own(ids);
  }

  __attribute__((noinline)) void ask_for_own(const int64_t* ids) const {
    const uint8_t* own = own_->bytes.data;
    const int64_t bytes = own_->row_bytes();
    for (int j = 0; j < kGroup; ++j) {
      if (static_cast<uint64_t>(ids[j]) < static_cast<uint64_t>(num_embeddings_)) prefetch_bytes(own + ids[j] * bytes, bytes);
    }
  }

  // The planes of a group.
  HFH_INLINE void sum(const Group& group, uint64_t (&planes)[2][4][kGroup]) const {
#if defined(__AVX2__)
    switch (shared_.num_hashes) {
      case 4: return sum_registers(planes, [&](int r, int piece) { return turned4(group, r, piece); });
      case 8: return sum_registers<false>(planes, [&](int r, int piece) { return turned8(group, r, piece); });
      default: return sum_registers<false>(planes, [&](int r, int piece) { return turned16(group, r, piece); });
    }
#else
    for (int r = 0; r < kGroup; ++r) {
      uint64_t plane[2][4] = {};
      planes_of(group.line[r], {group.fields[0][r], group.fields[1][r]}, sign_mask_, shared_.num_hashes, plane);
      for (int part = 0; part < 2; ++part) {
        for (int p = 0; p < 4; ++p) planes[part][p][r] = plane[part][p];
      }
    }
#endif
  }

#if defined(__AVX2__)
  template <bool kFour = true, class Turned>
  HFH_INLINE static void sum_registers(uint64_t (&planes)[2][4][kGroup], const Turned& turned) {
    for (int r = 0; r < kGroup; r += kWords) {
      Words v[8], counted[4];
      for (int i = 0; i < kWords; ++i) {
        for (int piece = 0; piece < 8 / kWords; ++piece) v[piece * kWords + i] = turned(r + i, piece);
      }
      for (int piece = 0; piece < 8 / kWords; ++piece) transpose(v + piece * kWords);
      if (!kFour) {
        count_planes8(v, counted);
        for (int p = 0; p < 4; ++p) std::memcpy(&planes[0][p][r], &counted[p], sizeof(Words));
      } else {
        for (int part = 0; part < 2; ++part) {
          count_planes4(v[part], v[2 + part], v[4 + part], v[6 + part], counted);
          for (int p = 0; p < 4; ++p) std::memcpy(&planes[part][p][r], &counted[p], sizeof(Words));
        }
      }
    }
  }
#endif

#if defined(__AVX512BW__)
  static constexpr int kWords = 8;  // 64-bit words in a register
  typedef uint64_t Words __attribute__((vector_size(64)));

  // A line whose eight words are rotated and negated.
  HFH_INLINE Words turned8(const Group& group, int r, int) const {
    const __m512i field = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<int64_t>(group.fields[0][r])));
    const __m512i turned = _mm512_rorv_epi64(_mm512_loadu_si512(group.line[r]), field);  // looks at the lowest six bits
    return negated(turned, field);
  }

  // The same for four words of 128 bits: the lower half of a word becomes what a shift takes from both.
  HFH_INLINE Words turned4(const Group& group, int r, int) const {
    const __m512i line = _mm512_loadu_si512(group.line[r]), swapped = _mm512_shuffle_epi32(line, _MM_PERM_BADC);
    const __m128i four = _mm_cvtsi32_si128(static_cast<int>(group.fields[0][r]));
    const __m512i field = _mm512_cvtepu8_epi64(_mm_unpacklo_epi8(four, four));  // a field for each half of a word
    const __mmask8 far = _mm512_test_epi64_mask(field, _mm512_set1_epi64(64));
    const __m512i low = _mm512_mask_mov_epi64(line, far, swapped), high = _mm512_mask_mov_epi64(swapped, far, line);
    const __m512i by = _mm512_and_si512(field, _mm512_set1_epi64(63));
    const __m512i rest = _mm512_sub_epi64(_mm512_set1_epi64(64), by);  // a shift by 64 gives zero
    return negated(_mm512_or_si512(_mm512_srlv_epi64(low, by), _mm512_sllv_epi64(high, rest)), field);
  }

  HFH_INLINE Words turned16(const Group& group, int r, int) const {
    const __m128i fields = _mm_set_epi64x(static_cast<int64_t>(group.fields[1][r]), static_cast<int64_t>(group.fields[0][r]));
    const __m512i field = _mm512_cvtepu8_epi32(fields);
    const __m512i turned = _mm512_rorv_epi32(_mm512_loadu_si512(group.line[r]), field);  // looks at the lowest five bits
    const __mmask16 negate = _mm512_test_epi32_mask(field, _mm512_set1_epi32(static_cast<int>(sign_mask_)));
    return (Words)_mm512_mask_xor_epi32(turned, negate, turned, _mm512_set1_epi32(-1));
  }

  HFH_INLINE Words negated(__m512i words, __m512i field) const {
    const __mmask8 negate = _mm512_test_epi64_mask(field, _mm512_set1_epi64(static_cast<int64_t>(sign_mask_)));
    return (Words)_mm512_mask_xor_epi64(words, negate, words, _mm512_set1_epi64(-1));
  }

  // Lane u of row r becomes lane r of row u.
  HFH_INLINE static void transpose(Words* v) {
    __m512i a[8], b[8];
    for (int k = 0; k < 4; ++k) {
      a[2 * k] = _mm512_unpacklo_epi64((__m512i)v[2 * k], (__m512i)v[2 * k + 1]);
      a[2 * k + 1] = _mm512_unpackhi_epi64((__m512i)v[2 * k], (__m512i)v[2 * k + 1]);
    }
    for (int k = 0; k < 2; ++k) {
      for (int odd = 0; odd < 2; ++odd) {
        b[4 * k + odd] = _mm512_shuffle_i64x2(a[4 * k + odd], a[4 * k + 2 + odd], 0x88);
        b[4 * k + 2 + odd] = _mm512_shuffle_i64x2(a[4 * k + odd], a[4 * k + 2 + odd], 0xDD);
      }
    }
    for (int k = 0; k < 4; ++k) {
      v[k] = (Words)_mm512_shuffle_i64x2(b[k], b[4 + k], 0x88);
      v[4 + k] = (Words)_mm512_shuffle_i64x2(b[k], b[4 + k], 0xDD);
    }
  }
#elif defined(__AVX2__)
  static constexpr int kWords = 4;
  typedef uint64_t Words __attribute__((vector_size(32)));

  // Four of a line's eight words, rotated and negated.
  HFH_INLINE Words turned8(const Group& group, int r, int piece) const {
    const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.line[r]) + piece);
    const __m256i field = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(group.fields[0][r] >> (32 * piece))));
    return shifted(line, line, field);
  }

  // Two of a line's four words of 128 bits.
  HFH_INLINE Words turned4(const Group& group, int r, int piece) const {
    const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.line[r]) + piece);
    const __m128i two = _mm_cvtsi32_si128(static_cast<int>(group.fields[0][r] >> (16 * piece)));
    const __m256i field = _mm256_cvtepu8_epi64(_mm_unpacklo_epi8(two, two));
    const __m256i swapped = _mm256_shuffle_epi32(line, 0x4E), far = _mm256_slli_epi64(field, 57);  // bit 6 to the top
    const __m256d low = _mm256_blendv_pd((__m256d)line, (__m256d)swapped, (__m256d)far);
    const __m256d high = _mm256_blendv_pd((__m256d)swapped, (__m256d)line, (__m256d)far);
    return shifted((__m256i)low, (__m256i)high, field);
  }

  // Eight of a line's sixteen words.
  HFH_INLINE Words turned16(const Group& group, int r, int piece) const {
    const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.line[r]) + piece);
    const __m256i field = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(group.fields[piece][r])));
    const __m256i by = _mm256_and_si256(field, _mm256_set1_epi32(31)), rest = _mm256_sub_epi32(_mm256_set1_epi32(32), by);
    const __m256i turned = _mm256_or_si256(_mm256_srlv_epi32(line, by), _mm256_sllv_epi32(line, rest));
    const __m256i sign = _mm256_and_si256(field, _mm256_set1_epi32(static_cast<int>(sign_mask_)));
    return (Words)_mm256_xor_si256(turned, _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_srli_epi32(sign, 7)));
  }

  HFH_INLINE Words shifted(__m256i low, __m256i high, __m256i field) const {
    const __m256i by = _mm256_and_si256(field, _mm256_set1_epi64x(63));
    const __m256i rest = _mm256_sub_epi64(_mm256_set1_epi64x(64), by);  // a shift by 64 gives zero
    const __m256i turned = _mm256_or_si256(_mm256_srlv_epi64(low, by), _mm256_sllv_epi64(high, rest));
    const __m256i sign = _mm256_and_si256(field, _mm256_set1_epi64x(static_cast<int64_t>(sign_mask_)));
    return (Words)_mm256_xor_si256(turned, _mm256_sub_epi64(_mm256_setzero_si256(), _mm256_srli_epi64(sign, 7)));
  }

  HFH_INLINE static void transpose(Words* v) {
    const __m256i a = _mm256_unpacklo_epi64((__m256i)v[0], (__m256i)v[1]), b = _mm256_unpackhi_epi64((__m256i)v[0], (__m256i)v[1]);
    const __m256i c = _mm256_unpacklo_epi64((__m256i)v[2], (__m256i)v[3]), d = _mm256_unpackhi_epi64((__m256i)v[2], (__m256i)v[3]);
    v[0] = (Words)_mm256_permute2x128_si256(a, c, 0x20), v[1] = (Words)_mm256_permute2x128_si256(b, d, 0x20);
    v[2] = (Words)_mm256_permute2x128_si256(a, c, 0x31), v[3] = (Words)_mm256_permute2x128_si256(b, d, 0x31);
  }
#endif

  const Shared& shared_;
  const uint8_t* pool_;
  const int64_t* ids_;
  const Values* own_;
  const int64_t num_embeddings_;
  const Palette palette_;
  const int64_t chunks_, draws_, total_;
  const uint32_t lines_;
  const uint64_t sign_mask_;
  int64_t next_ = 0, next_id_ = 0, next_chunk_ = 0;  // the unit that is hashed next
  int64_t hashed_ = 0, taken_ = 0;                   // groups
  Group ring_[kRing];
  bool repeated_;
  alignas(32) uint64_t all_[kMostRepeated][4];  // planes of each id, where repeated_
};

}  // namespace HFH_ISA
}  // namespace hfh
