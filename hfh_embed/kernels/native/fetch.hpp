// Hash, fetch and sum: the shared part of rows, for every locality and number of bits.
//
// Version 1: one loop over (id, chunk, hash function), addresses made as they are used, levels summed as integers. No
// address is stored and no temporary is larger than a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "hashing.hpp"

namespace hfh {

constexpr int64_t kLineBits = 512;

enum class Locality : int { kFree = 0, kAligned = 1, kLine = 2, kWords = 3 };

struct Shared {
  uint64_t key;
  int64_t slots;
  int64_t dim;
  int64_t num_hashes;
  int64_t chunk_size;
  Locality locality;
  int64_t lines;
  bool signs;

  int64_t num_chunks() const { return (dim + chunk_size - 1) / chunk_size; }
};

struct Address {
  int64_t start;
  int64_t rotation;
  bool negative;
};

// The addresses of one id, chunk by chunk; ``out`` has num_hashes places.
class Addresser {
 public:
  Addresser(const Shared& shared, int bits) : shared_(shared), line_slots_(kLineBits / bits), lines_(shared.lines) {}

  void begin(int64_t id) {
    state_ = id_state(shared_.key, id);
    if (shared_.locality == Locality::kLine) {
      for (int64_t k = 0; k < shared_.lines; ++k) lines_[k] = below(draw(state_, k), shared_.slots / line_slots_);
    }
  }

  void chunk(int64_t c, Address* out) const {
    const int64_t hashes = shared_.num_hashes, size = shared_.chunk_size;
    switch (shared_.locality) {
      case Locality::kFree:
      case Locality::kAligned: {
        const bool aligned = shared_.locality == Locality::kAligned;
        const uint64_t starts = aligned ? shared_.slots / size : shared_.slots - size + 1;
        for (int64_t u = 0; u < hashes; ++u) {
          const uint64_t d = draw(state_, c * hashes + u);
          out[u] = {static_cast<int64_t>(below(d, starts)) * (aligned ? size : 1), 0, shared_.signs && (d & 1)};
        }
        break;
      }
      case Locality::kLine:
        for (int64_t u = 0; u < hashes; ++u) {
          const int64_t n = c * hashes + u;
          const uint64_t d = draw(state_, n + shared_.lines);
          const int64_t within = below(d, line_slots_ - size + 1);
          out[u] = {static_cast<int64_t>(lines_[n % shared_.lines]) * line_slots_ + within, 0, shared_.signs && (d & 1)};
        }
        break;
      case Locality::kWords: {
        const int64_t first = c * (1 + (hashes + 7) / 8);
        const int64_t line = below(draw(state_, first), shared_.slots / (hashes * size)) * (hashes * size);
        uint64_t fields = 0;
        for (int64_t u = 0; u < hashes; ++u) {
          if (u % 8 == 0) fields = draw(state_, first + 1 + u / 8);
          const uint64_t field = (fields >> (u % 8 * 8)) & 0xFF;
          out[u] = {line + u * size, static_cast<int64_t>(field & (size - 1)), shared_.signs && (field >> 7)};
        }
        break;
      }
    }
  }

 private:
  const Shared& shared_;
  int64_t line_slots_;
  std::vector<uint64_t> lines_;
  uint64_t state_ = 0;
};

// What a pool holds: few-bit codes, each the odd integer 2c - (2**bits - 1), or floats.
template <int kBits>
struct Codes {
  using Sum = int32_t;
  const uint8_t* bytes;
  Sum operator[](int64_t slot) const {
    const uint8_t byte = bytes[slot * kBits >> 3];
    const int code = (byte >> (slot * kBits & 7)) & ((1 << kBits) - 1);
    return 2 * code - ((1 << kBits) - 1);
  }
};

struct Float32 {
  using Sum = float;
  const float* values;
  Sum operator[](int64_t slot) const { return values[slot]; }
};

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = (half >> 10) & 0x1F, mantissa = half & 0x3FF;
  uint32_t bits;
  if (exponent == 0x1F) {
    bits = sign | 0x7F800000 | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {  // zero or subnormal: mantissa * 2**-24, exact in float32
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

struct Float16 {
  using Sum = float;
  const uint16_t* values;
  Sum operator[](int64_t slot) const { return half_to_float(values[slot]); }
};

// Rows are sums that begin at zero, so a product of -0 becomes +0: hence the + 0.0f, here and in line.hpp.
//
// out[i] = scale * sum over u of the signed values that hash function u fetched, for every entry of the shared part.
template <class Pool>
void shared_sums(const Pool pool, const Shared& shared, int bits, float scale, const int64_t* ids, int64_t count, float* out) {
  Addresser addresser(shared, bits);
  std::vector<Address> where(shared.num_hashes);
  std::vector<typename Pool::Sum> sums(shared.chunk_size);
  const int64_t size = shared.chunk_size;
  for (int64_t i = 0; i < count; ++i) {
    addresser.begin(ids[i]);
    float* row = out + i * shared.dim;
    for (int64_t c = 0; c < shared.num_chunks(); ++c) {
      addresser.chunk(c, where.data());
      const int64_t used = std::min(size, shared.dim - c * size);
      std::fill(sums.begin(), sums.end(), 0);
      for (const Address& a : where) {
        const int64_t before_wrap = std::min(used, size - a.rotation);
        const auto add = [&](int64_t j, int64_t slot) { sums[j] += a.negative ? -pool[slot] : pool[slot]; };
        for (int64_t j = 0; j < before_wrap; ++j) add(j, a.start + a.rotation + j);
        for (int64_t j = before_wrap; j < used; ++j) add(j, a.start + a.rotation + j - size);
      }
      for (int64_t j = 0; j < used; ++j) row[c * size + j] = static_cast<float>(sums[j]) * scale + 0.0f;
    }
  }
}

}  // namespace hfh
