// Rows of codes, and the codes of rows. Included once for each set of instructions, in a namespace of its own (coded.hpp).
//
// A row's ring of bits is shifted to a byte's beginning and lengthened by its own first bits; a window is then one load, shift and
// mask, and its value one load from a book that stays in the cache. The map back to D entries is a blocked product of a few rows at
// a time with the whole map, which the compiler keeps in vectors of 16.

inline uint64_t load64(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, 8);
  return word;
}

inline uint32_t load32(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, 4);
  return word;
}

// The ring of one id as whole bytes, followed by its first bits again; `codes` has kSlack readable bytes after the row.
inline uint32_t open_ring(const TrellisPlan& plan, const uint8_t* codes, int64_t first_bit, uint8_t* ring) {
  uint32_t norm = 0;
  if (plan.norm_bits) norm = (load32(codes + (first_bit >> 3)) >> (first_bit & 7)) & ((1u << plan.norm_bits) - 1);
  const int64_t start = first_bit + plan.norm_bits;
  const uint8_t* from = codes + (start >> 3);
  const int by = static_cast<int>(start & 7);
  const int64_t words = (plan.ring_bits + 55) / 56;
  for (int64_t w = 0; w < words; ++w) {  // 56 good bits of each load
    const uint64_t word = load64(from + 7 * w) >> by;
    std::memcpy(ring + 7 * w, &word, 8);
  }
  const int64_t end = plan.ring_bits >> 3;
  const int over = static_cast<int>(plan.ring_bits & 7);
  const uint64_t begin = load64(ring) & ((uint64_t{1} << 24) - 1);  // state_bits + 7 of them at most
  const uint64_t tail = (ring[end] & ((1u << over) - 1)) | (begin << over);
  std::memcpy(ring + end, &tail, 8);
  return norm;
}

#ifdef HFH_BODY_AVX512
// Where the values of entries e to e + 15 lie.
inline __m512i places16(const TrellisPlan& plan, const uint8_t* ring, int64_t e) {
  const __m512i mask = _mm512_set1_epi64((1 << plan.state_bits) - 1);
  const auto eight = [&](int64_t first) {
    const __m512i word = _mm512_set1_epi64(static_cast<int64_t>(load64(ring + plan.load[first >> 3])));
    return _mm512_cvtepi64_epi32(_mm512_and_epi64(_mm512_srlv_epi64(word, _mm512_loadu_si512(plan.by.data() + first)), mask));
  };
  const __m512i windows = _mm512_inserti64x4(_mm512_castsi256_si512(eight(e)), eight(e + 8), 1);
  const __mmask16 some = static_cast<__mmask16>((1u << std::min<int64_t>(16, plan.num_entries() - e)) - 1);
  return _mm512_add_epi32(windows, _mm512_maskz_loadu_epi32(some, plan.book.data() + e));
}

// The values as bfloat16, of a table of these; to is filled up to a whole sixteen.
inline void trellis_halves(const TrellisPlan& plan, const uint16_t* values, const uint8_t* ring, uint16_t* to) {
  for (int64_t e = 0; e < plan.num_entries(); e += 16) {
    const __m512i two = _mm512_i32gather_epi32(places16(plan, ring, e), values, 2);
    const int64_t left = plan.num_entries() - e;
    const __mmask16 some = static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffff);
    _mm512_mask_cvtepi32_storeu_epi16(to + e, some, two);
  }
}
#endif

inline void trellis_entries(const TrellisPlan& plan, const float* values, const uint8_t* ring, float factor, float* z) {
  const int64_t entries = plan.num_entries();
  if (plan.constant) z[entries] += factor;
#ifdef HFH_BODY_AVX512
  if (plan.grouped) {
    for (int64_t e = 0; e < entries; e += 16) {
      const __mmask16 some = static_cast<__mmask16>(entries - e < 16 ? (1u << (entries - e)) - 1 : 0xffff);
      const __m512 found = _mm512_i32gather_ps(places16(plan, ring, e), values, 4);
      _mm512_mask_storeu_ps(z + e, some, _mm512_add_ps(_mm512_maskz_loadu_ps(some, z + e), _mm512_mul_ps(found, _mm512_set1_ps(factor))));
    }
    return;
  }
#endif
  const uint32_t mask = (1u << plan.state_bits) - 1;
  const int32_t *byte = plan.byte.data(), *shift = plan.shift.data(), *book = plan.book.data();
  int32_t place[64];
  for (int64_t e = 0; e < entries; e += 64) {
    const int64_t some = std::min<int64_t>(64, entries - e);
    for (int64_t i = 0; i < some; ++i) place[i] = book[e + i] + static_cast<int32_t>((load32(ring + byte[e + i]) >> shift[e + i]) & mask);
    for (int64_t i = 0; i < some; ++i) z[e + i] += factor * values[place[i]];
  }
}

inline void add_floats(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// out (dim, a multiple of kLanes) = the sum of rows, and of what it has where `more`.
inline void sum_rows(const float* const* rows, int64_t count, int64_t dim, bool more, float* out) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    Floats sum = more ? *reinterpret_cast<const Floats*>(out + d) : Floats{};
    for (int64_t r = 0; r < count; ++r) sum += *reinterpret_cast<const Floats*>(rows[r] + d);
    *reinterpret_cast<Floats*>(out + d) = sum;
  }
}

inline void scale_rows(const float* factors, int64_t rows, int64_t dim, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) out[r * dim + d] *= factors[r];
  }
}

// out (rows, dim) = bias + z (rows, latent) @ map (latent, dim), for up to kTileRows rows; columns from first to last, whole vectors.
template <int kRows, int kVectors>
inline void product_tile(const float* z, int64_t z_stride, const float* map, int64_t latent, int64_t dim, const float* bias, float* out) {
  Floats sum[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Floats start = bias ? *reinterpret_cast<const Floats*>(bias + kLanes * v) : Floats{};
    for (int r = 0; r < kRows; ++r) sum[r][v] = start;
  }
  for (int64_t k = 0; k < latent; ++k) {
    Floats column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = *reinterpret_cast<const Floats*>(map + k * dim + kLanes * v);
    for (int r = 0; r < kRows; ++r) {
      const Floats entry = Floats{} + z[r * z_stride + k];
      for (int v = 0; v < kVectors; ++v) sum[r][v] += entry * column[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Floats*>(out + r * dim + kLanes * v) = sum[r][v];
  }
}

template <int kRows>
inline void product_rows(const float* z, int64_t z_stride, const float* map, int64_t latent, int64_t dim, const float* bias, float* out) {
  int64_t c = 0;
  for (; c + kWide * kLanes <= dim; c += kWide * kLanes) {
    product_tile<kRows, kWide>(z, z_stride, map + c, latent, dim, bias ? bias + c : nullptr, out + c);
  }
  for (; c + kLanes <= dim; c += kLanes) product_tile<kRows, 1>(z, z_stride, map + c, latent, dim, bias ? bias + c : nullptr, out + c);
  for (; c < dim; ++c) {
    for (int r = 0; r < kRows; ++r) {
      float sum = bias ? bias[c] : 0;
      for (int64_t k = 0; k < latent; ++k) sum += z[r * z_stride + k] * map[k * dim + c];
      out[r * dim + c] = sum;
    }
  }
}

inline void product(const float* z, int64_t z_stride, int64_t rows, const float* map, int64_t latent, int64_t dim, const float* bias,
                    float* out) {
  int64_t r = 0;
  for (; r + kTall <= rows; r += kTall) product_rows<kTall>(z + r * z_stride, z_stride, map, latent, dim, bias, out + r * dim);
  for (; r < rows; ++r) product_rows<1>(z + r * z_stride, z_stride, map, latent, dim, bias, out + r * dim);
}

inline Floats picked(Floats from, Ints lanes) {
#ifdef __clang__
  Floats to;
  for (int i = 0; i < kLanes; ++i) to[i] = from[lanes[i]];
  return to;
#else
  return __builtin_shuffle(from, lanes);
#endif
}

// The cheapest predecessors of the 16 groups of successors from m on; their leading bits go to from.
template <int kHeads>
inline Floats cheapest(const float* cost, int64_t groups, int64_t heads, int64_t m, uint16_t* from) {
  if (kHeads) heads = kHeads;
#ifdef HFH_BODY_AVX512
  __m512 least = _mm512_loadu_ps(cost + m);
  __m512i head = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int64_t h = 1; h < heads; ++h) {
    const __m512 other = _mm512_loadu_ps(cost + h * groups + m);
    head = _mm512_mask_mov_epi32(head, _mm512_cmp_ps_mask(other, least, _CMP_LT_OQ), _mm512_set1_epi32(static_cast<int>(h)));
    least = _mm512_min_ps(other, least);
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(from + m), _mm512_cvtepi32_epi16(head));
  return reinterpret_cast<Floats>(least);
#else
  Floats least = *reinterpret_cast<const Floats*>(cost + m);
  Ints head = {};
  for (int64_t h = 1; h < heads; ++h) {
    const Floats other = *reinterpret_cast<const Floats*>(cost + h * groups + m);
    const Ints less = other < least;
    least = less ? other : least;
    head = less ? Ints{} + static_cast<int32_t>(h) : head;
  }
  *reinterpret_cast<Shorts*>(from + m) = __builtin_convertvector(head, Shorts);
  return least;
#endif
}

// What the entries of one step cost: weight * (value**2 - 2 x value) each. Copied, so that stores cannot change it.
struct StepEntries {
  int count;
  const float* values[8];
  float weight[8], linear[8];

  StepEntries(const TrellisPlan& plan, int64_t t, const float* x, const float* weights, const float* all) : count(plan.entries[t]) {
    for (int v = 0; v < count; ++v) {
      const int64_t entry = plan.first[t] + v;
      values[v] = all + plan.book[entry];
      weight[v] = weights[entry];
      linear[v] = -2 * weights[entry] * x[entry];
    }
  }

  template <int kCount>
  Floats after(Floats total, int64_t state) const {
#pragma GCC unroll 8
    for (int v = 0; v < (kCount ? kCount : count); ++v) {
      const Floats value = *reinterpret_cast<const Floats*>(values[v] + state);
      total += value * (weight[v] * value + linear[v]);
    }
    return total;
  }
};

// next[s] = the least cost of a predecessor of s, and of the step; fewer than four bits, so that 16 groups have whole vectors.
template <int kBits, int kCount>
inline void few_bits(const StepEntries step, int state_bits, const float* cost, float* next, uint16_t* from) {
  const int64_t groups = int64_t{1} << (state_bits - kBits);
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Ints spread = lane >> kBits;
  for (int64_t m = 0; m < groups; m += kLanes) {
    const Floats least = cheapest<1 << kBits>(cost, groups, 0, m, from);
#pragma GCC unroll 8
    for (int copy = 0; copy < 1 << kBits; ++copy) {
      const int64_t s = (m << kBits) + copy * kLanes;
      *reinterpret_cast<Floats*>(next + s) = step.after<kCount>(picked(least, spread + copy * (kLanes >> kBits)), s);
    }
  }
}

inline void many_bits(const StepEntries step, int state_bits, int bits, const float* cost, float* next, uint16_t* from) {
  const int64_t groups = int64_t{1} << (state_bits - bits), heads = int64_t{1} << bits;
  for (int64_t m = 0; m < groups; m += kLanes) {
    const Floats least = cheapest<0>(cost, groups, heads, m, from);
    for (int64_t g = 0; g < kLanes; ++g) {
      for (int64_t s = (m + g) << bits; s < (m + g + 1) << bits; s += kLanes) {
        *reinterpret_cast<Floats*>(next + s) = step.after<0>(Floats{} + least[g], s);
      }
    }
  }
}

inline void viterbi_step(const TrellisPlan& plan, int64_t t, const float* x, const float* weight, const float* values, const float* cost,
                         float* next, uint16_t* from) {
  const int bits = plan.bits[t], state_bits = plan.state_bits;
  const StepEntries step(plan, t, x, weight, values);
  if (state_bits - bits < 4) {  // fewer groups than lanes
    const int64_t groups = int64_t{1} << (state_bits - bits);
    for (int64_t m = 0; m < groups; ++m) {
      float least = cost[m];
      from[m] = 0;
      for (int64_t h = 1; h < int64_t{1} << bits; ++h) {
        if (cost[h * groups + m] < least) least = cost[h * groups + m], from[m] = static_cast<uint16_t>(h);
      }
      for (int64_t s = m << bits; s < (m + 1) << bits; ++s) {
        next[s] = least;
        for (int v = 0; v < step.count; ++v) {
          const float value = step.values[v][s];
          next[s] += value * (step.weight[v] * value + step.linear[v]);
        }
      }
    }
    return;
  }
#define HFH_FEW_BITS(kBits, kCount) return few_bits<kBits, kCount>(step, state_bits, cost, next, from)
  if (bits == 1) {
    switch (step.count) {
      case 1: HFH_FEW_BITS(1, 1);
      case 2: HFH_FEW_BITS(1, 2);
      case 4: HFH_FEW_BITS(1, 4);
      default: HFH_FEW_BITS(1, 0);
    }
  }
  if (bits == 2 && step.count == 1) HFH_FEW_BITS(2, 1);
  if (bits == 3 && step.count == 1) HFH_FEW_BITS(3, 1);
  many_bits(step, state_bits, bits, cost, next, from);
#undef HFH_FEW_BITS
}

// The first place of the least of numbers (count, a multiple of kLanes).
inline int64_t least_place(const float* from, int64_t count) {
  Floats least = *reinterpret_cast<const Floats*>(from);
  for (int64_t i = kLanes; i < count; i += kLanes) {
    const Floats other = *reinterpret_cast<const Floats*>(from + i);
    least = other < least ? other : least;
  }
  float smallest = least[0];
  for (int lane = 1; lane < kLanes; ++lane) smallest = least[lane] < smallest ? least[lane] : smallest;
  int64_t place = 0;
  while (place < count - 1 && !(from[place] <= smallest)) ++place;
  return place;
}

// Adds to cost (count) what x costs with each ring, whose values are rings (entries, count); count is a multiple of kLanes.
inline void ring_costs(const float* rings, int64_t count, int64_t entries, const float* x, const float* weight, float* cost) {
  for (int64_t e = 0; e < entries; ++e, rings += count) {
    const float own = weight[e], linear = -2 * own * x[e];
    for (int64_t r = 0; r < count; r += kLanes) {
      const Floats value = *reinterpret_cast<const Floats*>(rings + r);
      *reinterpret_cast<Floats*>(cost + r) += value * (own * value + linear);
    }
  }
}
