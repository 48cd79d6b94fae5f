// What products of tiles share, where the processor has AMX: leave to use them, their layout, and numbers in parts.
//
// Tiles multiply 16-bit floats (bfloat16) and sum in float32, some ten times as many products a cycle as vectors. A float32 is the
// sum of three bfloat16 exactly, eight bits each; products of parts that lie below a float32's last bit are left out, and the sum
// is as exact as one of float32 products. Numbers of eight bits need one part.
#pragma once

#include "simd.hpp"

#if defined(HFH_X86) && defined(__linux__) && __GNUC__ >= 11
#define HFH_AMX 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace hfh {

constexpr int kTileRows = 16, kTileDepth = 32, kTileParts = 3;
constexpr int kTileValues = kTileRows * kTileDepth;

// Whether this process may use tiles. HFH_SIMD=avx512 keeps to vectors.
inline bool tiles_allowed() {
  static const bool allowed = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (simd() != Simd::kAvx512 || std::getenv("HFH_SIMD")) return false;
    uint32_t a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool has = (d >> 22 & 1) && (d >> 24 & 1);
    return has && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
}

// Eight tiles of 16 rows of 64 bytes, unless said otherwise.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The three bfloat16 whose sum a float32 is.
inline void split(float value, uint16_t* parts) {
  for (int part = 0; part < kTileParts; ++part) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits &= 0xffff0000u;
    parts[part] = static_cast<uint16_t>(bits >> 16);
    float piece;
    std::memcpy(&piece, &bits, 4);
    value -= piece;
  }
}

}  // namespace hfh
#endif
