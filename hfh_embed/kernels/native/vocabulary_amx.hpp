// Logits and cross entropy of a tile of rows against all hidden states, where the processor has AMX.
// Hidden states and probabilities are kept in three parts; rows of whole numbers, as those of a few-bit pool before its scale,
// in one.
//
// Logits are made transposed, 16 rows by 16 tokens: softmax then never sums across a vector, and the probabilities leave it in the
// two layouts that the gradients' products want.
// Version 1, torch's float32 products and softmax over tiles that leave the cache: 1. Version 2, this: a quarter of the time.
#pragma once

#include "vocabulary_tiles.hpp"

#ifdef HFH_AMX

#include <algorithm>
#include <limits>

#include "parallel.hpp"

namespace hfh {

// How the losses of tokens depend on their logits, (B,) each: a logit's gradient is
// counted * softmax - spread, and less hit where it is the target's.
struct TokenGradients {
  const float *normalizer, *counted, *spread, *hit;
  const int64_t* targets;
};

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16")

class VocabularyTiles {
 public:
  static constexpr int kBlock = 64;
  static constexpr int64_t kSums = kTileRows * kTileRows;
  static constexpr int64_t kMostPieces = 8;

  VocabularyTiles(const float* hidden, int64_t tokens, int64_t dim)
      : tokens_(tokens), dim_(dim), blocks_((tokens + kBlock - 1) / kBlock), deep_((dim + kTileDepth - 1) / kTileDepth),
        pieces_(std::min(kMostPieces, blocks_)), by_dim_(blocks_ * 4 * deep_ * kTileParts * kTileValues), by_token_(blocks_ * 2 * 2 * deep_ * kTileParts * kTileValues),
        largest_(blocks_ * kBlock), total_(blocks_ * kBlock) {
    by_dim_.fill(0);
    by_token_.fill(0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        uint16_t parts[kTileParts];
        split(hidden[t * dim + d], parts);
        uint16_t* first = by_dim_.data() + (t / kTileRows * deep_ + d / kTileDepth) * kTileParts * kTileValues + d % kTileDepth / 2 * kTileDepth + t % kTileRows * 2 + d % 2;
        uint16_t* second = by_token_.data() + (t / kTileDepth * 2 * deep_ + d / kTileRows) * kTileParts * kTileValues + t % kTileDepth / 2 * kTileDepth + d % kTileRows * 2 + t % 2;
        for (int part = 0; part < kTileParts; ++part) first[part * kTileValues] = second[part * kTileValues] = parts[part];
      }
    }
    largest_.fill(-std::numeric_limits<float>::infinity());
    total_.fill(0);
  }

  int64_t tokens() const { return tokens_; }
  int64_t dim() const { return dim_; }

  // Take `count` rows (count, dim) into the softmax of every token; a logit is scale * product + bias.
  void forward(const float* rows, int64_t count, float scale, const float* bias, int threads) {
    take_rows(rows, count, bias, false);
    over_pieces(threads, [&](int64_t, int64_t begin, int64_t end) {
      Lines<float> logits(kBlock * kBlock);
      for (int64_t block = begin; block < end; ++block) {
        for (int64_t row = 0; row < row_blocks_; ++row) {
          make_logits(row, block, logits.data());
          add_to_softmax(logits.data(), std::min<int64_t>(kBlock, count - row * kBlock), scale, bias_.data() + row * kBlock, block);
        }
      }
    });
  }

  // log(sum(exp(logits))) of each token.
  void normalizers(float* out) const {
    for (int64_t t = 0; t < tokens_; ++t) out[t] = largest_.data()[t] + std::log(total_.data()[t]);
  }

  // The gradients of `count` rows that begin with id `first`, and of their biases; those of hidden states are summed up here.
  void backward(const float* rows, int64_t count, int64_t first, float scale, const float* bias, const TokenGradients& of, float* of_rows,
                float* of_bias, int threads) {
    take_rows(rows, count, bias, true);
    if (!of_hidden_.data()) {
      of_hidden_ = Lines<float>(blocks_ * 2 * deep_ * kTileRows * kBlock);
      of_hidden_.fill(0);
    }
    const int64_t sums = row_blocks_ * 4 * 2 * deep_ * kSums;
    if (!of_rows_.data() || sums > row_sums_) of_rows_ = Lines<float>(pieces_ * (row_sums_ = sums)), of_bias_ = Lines<float>(pieces_ * row_blocks_ * kBlock);
    over_pieces(threads, [&](int64_t piece, int64_t begin, int64_t end) {
      float* own_rows = of_rows_.data() + piece * sums;
      float* own_bias = of_bias_.data() + piece * row_blocks_ * kBlock;
      std::fill(own_rows, own_rows + sums, 0.0f);
      std::fill(own_bias, own_bias + row_blocks_ * kBlock, 0.0f);
      Lines<float> logits(kBlock * kBlock);
      Lines<uint16_t> by_token(kTileParts * kBlock * kBlock), by_row(kTileParts * kBlock * kBlock);
      for (int64_t block = begin; block < end; ++block) {
        const Tokens own(of, block, tokens_, first);
        for (int64_t row = 0; row < row_blocks_; ++row) {
          make_logits(row, block, logits.data());
          gradients(logits.data(), std::min<int64_t>(kBlock, count - row * kBlock), row * kBlock, scale, own, by_token.data(), by_row.data(),
                    own_bias);
          add_row_gradients(row, block, by_token.data(), own_rows);
          add_hidden_gradients(row, block, by_row.data());
        }
      }
    });
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < dim_; ++d) {
        const int64_t place = (r / kTileRows * 2 * deep_ + d / kTileRows) * kSums + r % kTileRows * kTileRows + d % kTileRows;
        float sum = 0;
        for (int64_t piece = 0; piece < pieces_; ++piece) sum += of_rows_.data()[piece * sums + place];
        of_rows[r * dim_ + d] = sum;
      }
      if (of_bias) {
        of_bias[r] = 0;
        for (int64_t piece = 0; piece < pieces_; ++piece) of_bias[r] += of_bias_.data()[piece * row_blocks_ * kBlock + r];
      }
    }
    scale_ = scale;
  }

  // The summed gradients of hidden states, (tokens, dim).
  void hidden_gradients(float* out) const {
    for (int64_t t = 0; t < tokens_; ++t) {
      const int64_t first = t / kBlock * 2 * deep_ * kTileRows * kBlock + t % kBlock;
      for (int64_t d = 0; d < dim_; ++d) out[t * dim_ + d] = of_hidden_.data() ? scale_ * of_hidden_.data()[first + d * kBlock] : 0.0f;
    }
  }

 private:
  // What a block of tokens needs, padded: tokens that are not there have no gradient.
  struct Tokens {
    alignas(64) float normalizer[kBlock], counted[kBlock], spread[kBlock], hit[kBlock];
    alignas(64) int32_t target[kBlock];

    Tokens(const TokenGradients& of, int64_t block, int64_t tokens, int64_t first) {
      for (int64_t i = 0; i < kBlock; ++i) {
        const int64_t t = block * kBlock + i;
        const bool there = t < tokens;
        normalizer[i] = there ? of.normalizer[t] : 0.0f;
        counted[i] = there ? of.counted[t] : 0.0f;
        spread[i] = there ? of.spread[t] : 0.0f;
        hit[i] = there ? of.hit[t] : 0.0f;
        const int64_t row = there ? of.targets[t] - first : -1;
        target[i] = row >= 0 && row < (1 << 30) ? static_cast<int32_t>(row) : -1;
      }
    }
  };

  // Pieces of the tokens are the same for any number of threads, and so is the order of every sum.
  template <class Work>
  void over_pieces(int threads, const Work& work) const {
    parallel(pieces_, std::min<int64_t>(pieces_, std::max(threads, 1)), [&](int64_t, int64_t from, int64_t to) {
      const TileConfig config;
      _tile_loadconfig(&config);
      for (int64_t piece = from; piece < to; ++piece) work(piece, blocks_ * piece / pieces_, blocks_ * (piece + 1) / pieces_);
      _tile_release();
    });
  }

  void take_rows(const float* rows, int64_t count, const float* bias, bool transposed) {
    row_blocks_ = (count + kBlock - 1) / kBlock;
    const int64_t size = row_blocks_ * 4 * deep_ * kTileParts * kTileValues;
    if (size > rows_size_) rows_ = Lines<uint16_t>(size), turned_ = Lines<uint16_t>(size), bias_ = Lines<float>(row_blocks_ * kBlock), rows_size_ = size;
    row_parts_ = 1;
    for (int64_t i = 0; i < count * dim_ && row_parts_ == 1; ++i) {
      uint32_t bits;
      std::memcpy(&bits, rows + i, 4);
      if (bits & 0xffffu) row_parts_ = kTileParts;
    }
    std::fill(bias_.data(), bias_.data() + row_blocks_ * kBlock, 0.0f);
    if (bias) std::copy(bias, bias + count, bias_.data());
    std::fill(rows_.data(), rows_.data() + size, uint16_t{0});
    if (transposed) std::fill(turned_.data(), turned_.data() + size, uint16_t{0});
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < dim_; ++d) {
        uint16_t parts[kTileParts];
        split(rows[r * dim_ + d], parts);
        uint16_t* to = rows_.data() + (r / kTileRows * deep_ + d / kTileDepth) * kTileParts * kTileValues + r % kTileRows * kTileDepth + d % kTileDepth;
        uint16_t* turned = turned_.data() + (d / kTileRows * 2 * row_blocks_ + r / kTileDepth) * kTileParts * kTileValues + d % kTileRows * kTileDepth + r % kTileDepth;
        for (int part = 0; part < row_parts_; ++part) {
          to[part * kTileValues] = parts[part];
          if (transposed) turned[part * kTileValues] = parts[part];
        }
      }
    }
  }

  // (64 rows, 64 tokens) of products.
  void make_logits(int64_t row, int64_t block, float* out) const {
    const int64_t next = deep_ * kTileParts * kTileValues;
    for (int r = 0; r < 4; r += 2) {
      for (int t = 0; t < 4; t += 2) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const uint16_t* a = rows_.data() + (row * 4 + r) * next;
        const uint16_t* b = by_dim_.data() + (block * 4 + t) * next;
        for (int64_t k = 0; k < deep_; ++k, a += kTileParts * kTileValues, b += kTileParts * kTileValues) add_products(a, next, row_parts_, kTileValues, b, next, kTileValues);
        float* to = out + r * kTileRows * kBlock + t * kTileRows;
        _tile_stored(0, to, 4 * kBlock);
        _tile_stored(1, to + kTileRows, 4 * kBlock);
        _tile_stored(2, to + kTileRows * kBlock, 4 * kBlock);
        _tile_stored(3, to + kTileRows * kBlock + kTileRows, 4 * kBlock);
      }
    }
  }

  void add_to_softmax(float* logits, int64_t count, float scale, const float* bias, int64_t block) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int t = 0; t < kBlock; t += kTileRows) {
      float* const column = logits + t;
      float* const largest_at = largest_.data() + block * kBlock + t;
      float* const total_at = total_.data() + block * kBlock + t;
      const __m512 before = _mm512_load_ps(largest_at);
      __m512 largest = before;
      for (int64_t r = 0; r < count; ++r) {
        const __m512 x = _mm512_fmadd_ps(_mm512_load_ps(column + r * kBlock), factor, _mm512_set1_ps(bias[r]));
        _mm512_store_ps(column + r * kBlock, x);
        largest = _mm512_max_ps(largest, x);
      }
      __m512 total = _mm512_mul_ps(_mm512_load_ps(total_at), exponential(_mm512_sub_ps(before, largest)));
      __m512 sum = _mm512_setzero_ps();
      for (int64_t r = 0; r < count; ++r) sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(_mm512_load_ps(column + r * kBlock), largest)));
      _mm512_store_ps(total_at, _mm512_add_ps(total, sum));
      _mm512_store_ps(largest_at, largest);
    }
  }

  // Gradients of (64 rows, 64 tokens) of logits in parts, as A with rows of tokens and as B with columns of rows.
  void gradients(const float* logits, int64_t count, int64_t first, float scale, const Tokens& of, uint16_t* by_token, uint16_t* by_row,
                 float* of_bias) const {
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int64_t r = 0; r < kBlock; r += 2) {
      __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int t = 0; t < kBlock; t += kTileRows) {
        __m512 p[2];
        for (int k = 0; k < 2; ++k) {
          if (r + k >= count) {
            p[k] = _mm512_setzero_ps();
            continue;
          }
          const __m512 x = _mm512_fmadd_ps(_mm512_load_ps(logits + (r + k) * kBlock + t), factor, _mm512_set1_ps(bias_.data()[first + r + k]));
          const __m512 share = exponential(_mm512_sub_ps(x, _mm512_load_ps(of.normalizer + t)));
          p[k] = _mm512_fmsub_ps(share, _mm512_load_ps(of.counted + t), _mm512_load_ps(of.spread + t));
          const __mmask16 hit = _mm512_cmpeq_epi32_mask(_mm512_load_si512(of.target + t), _mm512_set1_epi32(static_cast<int>(first + r + k)));
          p[k] = _mm512_mask_sub_ps(p[k], hit, p[k], _mm512_load_ps(of.hit + t));
          sums[k] = _mm512_add_ps(sums[k], p[k]);
        }
        // A: tile (rows of 16, tokens of 32). B: tile (pairs of 32 rows, 16 tokens).
        uint16_t* const a = by_token + (r / kTileRows * 2 + t / kTileDepth) * kTileParts * kTileValues + r % kTileRows * kTileDepth + t % kTileDepth;
        uint16_t* const b = by_row + (r / kTileDepth * 4 + t / kTileRows) * kTileParts * kTileValues + r % kTileDepth / 2 * kTileDepth;
        for (int part = 0; part < kTileParts; ++part) {
          const __m512i one = _mm512_and_si512(_mm512_castps_si512(p[0]), high), two = _mm512_and_si512(_mm512_castps_si512(p[1]), high);
          const __m512i low = _mm512_srli_epi32(one, 16);
          _mm256_store_si256(reinterpret_cast<__m256i*>(a + part * kTileValues), _mm512_cvtepi32_epi16(low));
          _mm256_store_si256(reinterpret_cast<__m256i*>(a + part * kTileValues + kTileDepth), _mm512_cvtepi32_epi16(_mm512_srli_epi32(two, 16)));
          _mm512_store_si512(b + part * kTileValues, _mm512_or_si512(low, two));
          p[0] = _mm512_sub_ps(p[0], _mm512_castsi512_ps(one));
          p[1] = _mm512_sub_ps(p[1], _mm512_castsi512_ps(two));
        }
      }
      for (int k = 0; k < 2; ++k) of_bias[first + r + k] += _mm512_reduce_add_ps(sums[k]);
    }
  }

  // (64 rows, dim) += gradients of logits times hidden states.
  void add_row_gradients(int64_t row, int64_t block, const uint16_t* by_token, float* out) const {
    const int64_t columns = 2 * deep_;
    for (int64_t d = 0; d < columns; d += 2) {
      for (int r = 0; r < 4; r += 2) {
        float* to = out + ((row * 4 + r) * columns + d) * kSums;
        load_sums(to, kSums, columns * kSums, 4 * kTileRows);
        for (int k = 0; k < 2; ++k) {
          const uint16_t* b = by_token_.data() + ((block * 2 + k) * columns + d) * kTileParts * kTileValues;
          add_products(by_token + (r * 2 + k) * kTileParts * kTileValues, 2 * kTileParts * kTileValues, kTileParts, kTileValues, b, kTileParts * kTileValues, kTileValues);
        }
        store_sums(to, kSums, columns * kSums, 4 * kTileRows);
      }
    }
  }

  // (dim, 64 tokens) += transposed rows times gradients of logits.
  void add_hidden_gradients(int64_t row, int64_t block, const uint16_t* by_row) {
    const int64_t columns = 2 * deep_;
    for (int64_t d = 0; d < columns; d += 2) {
      for (int t = 0; t < 4; t += 2) {
        float* to = of_hidden_.data() + (block * columns + d) * kTileRows * kBlock + t * kTileRows;
        load_sums(to, kTileRows, kTileRows * kBlock, 4 * kBlock);
        for (int k = 0; k < 2; ++k) {
          const uint16_t* a = turned_.data() + (d * 2 * row_blocks_ + row * 2 + k) * kTileParts * kTileValues;
          add_products(a, 2 * row_blocks_ * kTileParts * kTileValues, row_parts_, kTileValues, by_row + (k * 4 + t) * kTileParts * kTileValues, kTileParts * kTileValues, kTileValues);
        }
        store_sums(to, kTileRows, kTileRows * kBlock, 4 * kBlock);
      }
    }
  }

  int64_t tokens_, dim_, blocks_, deep_, pieces_;
  int64_t row_blocks_ = 0, rows_size_ = 0, row_sums_ = 0;
  int row_parts_ = 1;
  float scale_ = 1;
  Lines<uint16_t> by_dim_, by_token_, rows_, turned_;  // hidden states for logits and for rows' gradients; rows, and transposed
  Lines<float> largest_, total_, bias_, of_hidden_, of_rows_, of_bias_;
};

#pragma GCC pop_options

}  // namespace hfh
#endif
