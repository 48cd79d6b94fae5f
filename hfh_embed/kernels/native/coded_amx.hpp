// The map back as a product of tiles, where the processor has AMX: some ten times as many products a cycle as vectors give.
// The map is kept in three parts; latent entries that are whole numbers of eight bits need one.
#pragma once

#include "amx.hpp"

#ifdef HFH_AMX

#include <algorithm>
#include <cmath>
#include <vector>

namespace hfh {

constexpr int kBlock = 32;

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16")

class TileMap {
 public:
  // Parts of the latent entries: 1 where each is exactly a bfloat16, else 3; 2 where 16 bits of each product are enough.
  TileMap(const float* map, int64_t latent, int64_t dim, const float* bias, int parts)
      : parts_(parts), kept_(parts == 2 ? 2 : kTileParts), latent_(latent), dim_(dim), depth_((latent + kTileDepth - 1) / kTileDepth),
        columns_((dim + kTileRows - 1) / kTileRows), map_(columns_ * depth_ * kept_ * kTileValues) {
    if (bias) {
      bias_.assign(columns_ * kTileRows, 0.0f);
      std::copy(bias, bias + dim, bias_.begin());
    }
    for (int64_t k = 0; k < latent; ++k) {
      for (int64_t d = 0; d < dim; ++d) {
        uint16_t pieces[kTileParts];
        split(map[k * dim + d], pieces);
        uint16_t* tile = map_.data() + ((d / kTileRows) * depth_ + k / kTileDepth) * kept_ * kTileValues;
        const int64_t place = (k % kTileDepth / 2) * kTileDepth + (d % kTileRows) * 2 + k % 2;
        for (int part = 0; part < kept_; ++part) tile[part * kTileValues + place] = pieces[part];
      }
    }
  }

  // Whether tiles keep the precision: they treat the smallest numbers as zero.
  static bool suits(const float* map, int64_t count) {
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(map[i])) return false;
      largest = std::max(largest, std::abs(map[i]));
    }
    return largest > 1e-20f && largest < 1e25f;
  }

  int parts() const { return parts_; }
  int64_t stride() const { return depth_ * kTileDepth; }
  int64_t part_size() const { return kBlock * stride(); }
  int64_t workspace() const { return parts_ * part_size(); }

  // Row r of z (latent floats) becomes row r of the parts in `to`.
  void store(const float* z, int64_t r, uint16_t* to) const {
    to += r * stride();
    int64_t k = 0;
    for (; k + 16 <= latent_; k += 16) {
      __m512 left = _mm512_loadu_ps(z + k);
      for (int part = 0; part < parts_; ++part) {
        const __m512i piece = _mm512_and_si512(_mm512_castps_si512(left), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + part * part_size() + k), _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece, 16)));
        left = _mm512_sub_ps(left, _mm512_castsi512_ps(piece));
      }
    }
    for (; k < latent_; ++k) {
      uint16_t pieces[kTileParts];
      split(z[k], pieces);
      for (int part = 0; part < parts_; ++part) to[part * part_size() + k] = pieces[part];
    }
  }

  // As product, of latent rows themselves, for which parts has a workspace.
  void multiply(const float* z, int64_t rows, uint16_t* parts, float* out) const {
    for (int64_t r = 0; r < rows; ++r) store(z + r * latent_, r, parts);
    product(parts, rows, out);
  }

  // out (rows, dim) = bias + z @ map for at most kBlock rows of parts; with `more`, which takes whole tiles, out + z @ map.
  void product(const uint16_t* z, int64_t rows, float* out, bool more = false) const {
    TileConfig config;
    const int64_t first = std::min<int64_t>(rows, kTileRows), second = rows - first;
    for (const int tile : {0, 1, 4}) config.rows[tile] = static_cast<uint8_t>(first);
    for (const int tile : {2, 3, 5}) config.rows[tile] = static_cast<uint8_t>(std::max<int64_t>(second, 1));
    _tile_loadconfig(&config);
    int64_t c = 0;
    for (; c + 2 <= columns_; c += 2) second ? columns<true, true>(z, rows, c, out, more) : columns<false, true>(z, rows, c, out, more);
    if (c < columns_) second ? columns<true, false>(z, rows, c, out, more) : columns<false, false>(z, rows, c, out, more);
    _tile_release();
  }

 private:
  template <bool kTwoRows, bool kTwoColumns>
  void columns(const uint16_t* z, int64_t rows, int64_t c, float* out, bool more) const {
    float* to = out + c * kTileRows;
    float* below = to + kTileRows * dim_;
    const int64_t columns_left = dim_ - c * kTileRows, step = 4 * dim_;
    if (more) {
      _tile_loadd(0, to, step);
      if (kTwoColumns) _tile_loadd(1, to + kTileRows, step);
      if (kTwoRows) _tile_loadd(2, below, step);
      if (kTwoRows && kTwoColumns) _tile_loadd(3, below + kTileRows, step);
    } else if (bias_.empty()) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {  // the same 16 numbers in each row
      _tile_loadd(0, bias_.data() + c * kTileRows, 0);
      if (kTwoColumns) _tile_loadd(1, bias_.data() + (c + 1) * kTileRows, 0);
      if (kTwoRows) _tile_loadd(2, bias_.data() + c * kTileRows, 0);
      if (kTwoRows && kTwoColumns) _tile_loadd(3, bias_.data() + (c + 1) * kTileRows, 0);
    }
    const int64_t bytes = 2 * stride();
    for (int64_t k = 0; k < depth_; ++k) {
      const uint16_t* left = map_.data() + (c * depth_ + k) * kept_ * kTileValues;
      const uint16_t* right = left + depth_ * kept_ * kTileValues;
      for (int part = 0; part < kept_; ++part) {
        _tile_loadd(6, left + part * kTileValues, 64);
        if (kTwoColumns) _tile_loadd(7, right + part * kTileValues, 64);
        for (int own = 0; own < parts_ && own + part < kept_; ++own) {
          if (parts_ > 1 || part == 0) {
            const uint16_t* rows0 = z + own * part_size() + k * kTileDepth;
            _tile_loadd(4, rows0, bytes);
            if (kTwoRows) _tile_loadd(5, rows0 + kTileRows * stride(), bytes);
          }
          _tile_dpbf16ps(0, 4, 6);
          if (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
          if (kTwoRows) _tile_dpbf16ps(2, 5, 6);
          if (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    if (columns_left >= (kTwoColumns ? 2 : 1) * kTileRows) {
      _tile_stored(0, to, step);
      if (kTwoColumns) _tile_stored(1, to + kTileRows, step);
      if (kTwoRows) _tile_stored(2, below, step);
      if (kTwoRows && kTwoColumns) _tile_stored(3, below + kTileRows, step);
      return;
    }
    alignas(64) float whole[kBlock * 2 * kTileRows];
    constexpr int64_t kWide = 2 * kTileRows;
    _tile_stored(0, whole, 4 * kWide);
    if (kTwoColumns) _tile_stored(1, whole + kTileRows, 4 * kWide);
    if (kTwoRows) _tile_stored(2, whole + kTileRows * kWide, 4 * kWide);
    if (kTwoRows && kTwoColumns) _tile_stored(3, whole + kTileRows * kWide + kTileRows, 4 * kWide);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * dim_, whole + r * kWide, 4 * std::min(columns_left, kWide));
  }

  int parts_, kept_;
  int64_t latent_, dim_, depth_, columns_;
  LineVector<uint16_t> map_;
  std::vector<float> bias_;
};

#pragma GCC pop_options

}  // namespace hfh
#endif
