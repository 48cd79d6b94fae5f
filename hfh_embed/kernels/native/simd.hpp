// The instructions to use: the best there are, or fewer where HFH_SIMD says so.
#pragma once

#include <cstdlib>
#include <string>

#include "line.hpp"

namespace hfh {

inline Simd simd() {
  static const Simd chosen = [] {
    const char* wanted = std::getenv("HFH_SIMD");
    const std::string name = wanted ? wanted : "";
    const Simd best = best_simd();
    if (name == "portable") return Simd::kPortable;
    if (name == "avx2" && best != Simd::kPortable) return Simd::kAvx2;
    return best;
  }();
  return chosen;
}

}  // namespace hfh
