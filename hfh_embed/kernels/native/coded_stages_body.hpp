// The search for the codes of stages. Included once for each set of instructions, after coded_body.hpp.
//
// A centroid's score is half its squared length, less its product with the row, plus its products with the centroids that a partial code
// has named before: half the squared error less a constant. Those products are a table, so a row is multiplied with the centroids once,
// however many partial codes there are.

// score (kStageCodes) = cost + base + unit times the sum of the rows of products that `named` points to, which does not overflow;
// least[lane] is lowered to the least score of a lane.
inline void stage_scores(const float* base, const int16_t* const* named, int64_t count, float unit, float cost, float* score,
                         Floats& least) {
  Floats low = least;
  for (int64_t c = 0; c < kStageCodes; c += 4 * kLanes) {
    Products sum[4] = {};
    for (int64_t j = 0; j < count; ++j) {
      for (int v = 0; v < 4; ++v) sum[v] += *reinterpret_cast<const Products*>(named[j] + c + v * kLanes);
    }
    for (int v = 0; v < 4; ++v) {
      const Floats start = *reinterpret_cast<const Floats*>(base + c + v * kLanes) + cost;
      const Floats own = __builtin_convertvector(__builtin_convertvector(sum[v], Ints), Floats) * unit + start;
      *reinterpret_cast<Floats*>(score + c + v * kLanes) = own;
      low = own < low ? own : low;
    }
  }
  least = low;
}

// The places of the `wanted` least scores (count, a multiple of kLanes), best first, of equal ones the earlier; returns how many there are.
inline int64_t least_scores(const float* score, int64_t count, const Floats& least, int64_t wanted, int32_t* places) {
  Ints below = {};
  for (int i = 0; i < kLanes; ++i) below -= Floats{} + least[i] < least;
  float most = -std::numeric_limits<float>::infinity();  // as many scores are at most this as are wanted
  for (int i = 0; i < kLanes; ++i) most = below[i] < wanted ? std::max(most, static_cast<float>(least[i])) : most;
  int64_t found = 0;
  const auto insert = [&](int64_t place) {
    int64_t at = std::min(found, wanted - 1);
    if (found == wanted && !(score[place] < score[places[at]])) return;
    for (; at > 0 && score[place] < score[places[at - 1]]; --at) places[at] = places[at - 1];
    places[at] = static_cast<int32_t>(place);
    found = std::min(found + 1, wanted);
  };
  for (int64_t i = 0; i < count; i += kLanes) {
#ifdef HFH_BODY_AVX512
    for (uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i), _mm512_set1_ps(most), _CMP_LE_OQ); low; low &= low - 1) {
      insert(i + __builtin_ctz(low));
    }
#else
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (score[i + lane] <= most) insert(i + lane);
    }
#endif
  }
  return found;
}
