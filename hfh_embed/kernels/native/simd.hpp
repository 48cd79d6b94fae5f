// The instruction set in use, for code that is not one of the Kernels.
#pragma once

#include "binding.hpp"

namespace hfh {

enum class Simd : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

inline Simd simd() {
#ifdef HFH_X86
  if (&binding::kernels() == &kAvx512) return Simd::kAvx512;
  if (&binding::kernels() == &kAvx2) return Simd::kAvx2;
#endif
  return Simd::kPortable;
}

}  // namespace hfh
