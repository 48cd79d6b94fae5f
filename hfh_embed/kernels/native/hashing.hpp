// The hash functions of hashing.py, bit for bit: SplitMix64 streams (Steele, Lea and Flood, OOPSLA 2014).
#pragma once

#include "vector.hpp"

namespace hfh {
namespace HFH_ISA {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline uint64_t id_state(uint64_t key, int64_t id) { return mix64(static_cast<uint64_t>(id) + key); }

inline uint64_t draw(uint64_t state, uint64_t n) { return mix64(state + (n + 1) * kGolden); }

// An integer in [0, m), m <= 2**32.
inline uint64_t below(uint64_t draw, uint64_t m) { return ((draw >> 32) * m) >> 32; }

}  // namespace HFH_ISA
}  // namespace hfh
