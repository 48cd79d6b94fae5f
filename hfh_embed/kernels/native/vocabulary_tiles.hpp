// What the softmax over a vocabulary is made of, where the processor has AMX: memory on cache lines, products and sums of four tiles,
// the exponential function.
#pragma once

#include "amx.hpp"

#ifdef HFH_AMX

#include <algorithm>
#include <memory>
#include <new>

namespace hfh {

// Memory that begins on a cache line.
template <class T>
class Lines {
 public:
  Lines() = default;
  explicit Lines(int64_t count) : data_(static_cast<T*>(::operator new(sizeof(T) * count, std::align_val_t{64}))), size_(count) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  void fill(T value) { std::fill(data(), data() + size_, value); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16")

// Products of the parts a of A (two tiles, `next_a` apart) and b of B, a + b < 3, onto sums 0 to 3.
inline void add_products(const uint16_t* a, int64_t next_a, int a_parts, int64_t a_part, const uint16_t* b, int64_t next_b, int64_t b_part) {
  for (int of_b = 0; of_b < kTileParts; ++of_b) {
    _tile_loadd(6, b + of_b * b_part, 64);
    _tile_loadd(7, b + next_b + of_b * b_part, 64);
    for (int of_a = 0; of_a < a_parts && of_a + of_b < kTileParts; ++of_a) {
      _tile_loadd(4, a + of_a * a_part, 64);
      _tile_loadd(5, a + next_a + of_a * a_part, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

inline void load_sums(const float* from, int64_t right, int64_t below, int64_t step) {
  _tile_loadd(0, from, step);
  _tile_loadd(1, from + right, step);
  _tile_loadd(2, from + below, step);
  _tile_loadd(3, from + below + right, step);
}

inline void store_sums(float* to, int64_t right, int64_t below, int64_t step) {
  _tile_stored(0, to, step);
  _tile_stored(1, to + right, step);
  _tile_stored(2, to + below, step);
  _tile_stored(3, to + below + right, step);
}

// e to the power of numbers up to about 80, within 2 units of the last place. Below -60 it is zero: what a softmax of a million
// rows loses by that is 1e-20, and smaller numbers would end in denormal ones, which cost a hundred times as much.
inline __m512 exponential(__m512 x) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-60.0f), _CMP_GE_OQ);
  x = _mm512_max_ps(x, _mm512_set1_ps(-60.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(counts, y, n);
}

#pragma GCC pop_options

}  // namespace hfh
#endif
