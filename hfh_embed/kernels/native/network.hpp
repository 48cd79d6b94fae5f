// The small networks: g over fetched values, the linear map, the residual network. Vectors over entries; sums here have an
// error budget, so products and sums may be fused.
//
// Version 1 was numpy on blocks of rows. Version 2, here, keeps a tile of 4 rows x 2 or 4 vectors of the map's output in
// registers and finishes a block of rows while it is in the cache.
#pragma once

#include "kernels.hpp"
#include "values.hpp"

namespace hfh {
namespace HFH_ISA {

// What a product is added to: zeros (null), one row for all (stride 0), or rows.
struct Start {
  const float* rows;
  int64_t stride;

  Start at(int64_t row, int64_t column) const { return {rows ? rows + row * stride + column : nullptr, stride}; }
};

// out[i, :] = start[i, :] + in[i, :] @ matrix for kRows rows; ``inner`` x ``width`` row by row, the inputs ``in_stride`` apart.
template <int kRows, int kVecs>
inline void tile(const float* in, int64_t in_stride, int64_t inner, const float* matrix, int64_t width, Start start, float* out,
                 int64_t out_stride) {
  Vec sums[kRows][kVecs];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v) sums[i][v] = start.rows ? load(start.rows + i * start.stride + v * kLanes) : Vec{};
  }
  for (int64_t r = 0; r < inner; ++r) {
    Vec line[kVecs];
    for (int v = 0; v < kVecs; ++v) line[v] = load(matrix + r * width + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec x = spread(in[i * in_stride + r]);
      for (int v = 0; v < kVecs; ++v) sums[i][v] = multiply_add(x, line[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v) store(out + i * out_stride + v * kLanes, sums[i][v]);
  }
}

template <int kRows>
inline void matmul_rows(const float* in, int64_t in_stride, int64_t inner, const float* matrix, int64_t width, Start start,
                        float* out, int64_t out_stride) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;  // as many sums as there are registers for
  int64_t j = 0;
  for (; j + kWide * kLanes <= width; j += kWide * kLanes) {
    tile<kRows, kWide>(in, in_stride, inner, matrix + j, width, start.at(0, j), out + j, out_stride);
  }
  for (; j + 2 * kLanes <= width; j += 2 * kLanes) tile<kRows, 2>(in, in_stride, inner, matrix + j, width, start.at(0, j), out + j, out_stride);
  for (; j + kLanes <= width; j += kLanes) tile<kRows, 1>(in, in_stride, inner, matrix + j, width, start.at(0, j), out + j, out_stride);
#if defined(__AVX512F__)
  if (j < width) {
    Vec sums[kRows];
    for (int i = 0; i < kRows; ++i) sums[i] = start.rows ? load_some(start.rows + i * start.stride + j, width - j) : Vec{};
    for (int64_t r = 0; r < inner; ++r) {
      const Vec line = load_some(matrix + r * width + j, width - j);
      for (int i = 0; i < kRows; ++i) sums[i] = multiply_add(spread(in[i * in_stride + r]), line, sums[i]);
    }
    for (int i = 0; i < kRows; ++i) store_some(out + i * out_stride + j, sums[i], width - j);
    return;
  }
#endif
  for (; j < width; ++j) {
    for (int i = 0; i < kRows; ++i) {
      float sum = start.rows ? start.rows[i * start.stride + j] : 0.0f;
      for (int64_t r = 0; r < inner; ++r) sum += in[i * in_stride + r] * matrix[r * width + j];
      out[i * out_stride + j] = sum;
    }
  }
}

// out = start + in @ matrix; ``start`` may be the output itself.
inline void matmul(const float* in, int64_t in_stride, int64_t rows, int64_t inner, const float* matrix, int64_t width, Start start,
                   float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    matmul_rows<4>(in + i * in_stride, in_stride, inner, matrix, width, start.at(i, 0), out + i * out_stride, out_stride);
  }
  for (; i < rows; ++i) {
    matmul_rows<1>(in + i * in_stride, in_stride, inner, matrix, width, start.at(i, 0), out + i * out_stride, out_stride);
  }
}

// tanh(x) = 1 - 2 / (exp(2x) + 1), within 2e-7 of the true value. exp by halving into 2**n times a Taylor sum on
// [-ln2 / 2, ln2 / 2].
inline Vec tanh_of(Vec x) {
  Vec y = x + x;
  const Vec high = spread(30.0f), low = spread(-30.0f);
  y = y > high ? high : y;
  y = y < low ? low : y;
  const Vec scaled = y * 1.44269504088896341f;
  const Vec half = y < 0.0f ? spread(-0.5f) : spread(0.5f);
  const IntVec n = __builtin_convertvector(scaled + half, IntVec);
  const Vec whole = __builtin_convertvector(n, Vec);
  Vec f = multiply_add(whole, spread(-0.693145751953125f), y);
  f = multiply_add(whole, spread(-1.42860682030941723e-6f), f);
  Vec e = spread(1.0f / 5040);
  const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float factor : factors) e = multiply_add(e, f, spread(factor));
  const IntVec power = (n + 127) << 23;
  Vec two;
  std::memcpy(&two, &power, sizeof two);
  return 1.0f - 2.0f / (e * two + 1.0f);
}

// g of the values (U, dim) behind each entry, times scale.
inline void reconstruct(const Network& network, int64_t hashes, int64_t dim, const float* values, float scale, float* row) {
  for (int64_t first = 0; first < dim; first += kLanes) {
    const int64_t used = least(kLanes, dim - first);
    Vec v[64];
    for (int64_t u = 0; u < hashes; ++u) {
      float lanes[kLanes] = {};
      std::memcpy(lanes, values + u * dim + first, static_cast<size_t>(used) * 4);
      v[u] = load(lanes);
    }
    Vec sum{};
    if (network.kind == Reconstruction::kMlp) {
      for (int64_t h = 0; h < network.hidden; ++h) {
        Vec x = spread(network.b1[h]);
        for (int64_t u = 0; u < hashes; ++u) x = multiply_add(v[u], spread(network.w1[u * network.hidden + h]), x);
        sum = multiply_add(tanh_of(x), spread(network.w2[h]), sum);
      }
      sum += network.b2[0];
    } else {
      for (int64_t u = 0; u < hashes; ++u) {
        Vec inner = spread(network.w1[u]);
        for (int64_t w = 0; w < hashes; ++w) inner = multiply_add(v[w], spread(network.w2[w * hashes + u]), inner);
        sum = multiply_add(v[u], inner, sum);
      }
    }
    sum *= scale;
    float lanes[kLanes];
    store(lanes, sum);
    std::memcpy(row + first, lanes, static_cast<size_t>(used) * 4);
  }
}

// e + W2 relu(W1 e + b1) + b2 on rows (rows, dim); ``hidden`` holds rows x residual.hidden floats.
inline void correct(const Residual& residual, int64_t rows, int64_t dim, float* e, int64_t stride, float* hidden) {
  const int64_t h = residual.hidden;
  matmul(e, stride, rows, dim, residual.w1, h, {residual.b1, 0}, hidden, h);
  for (int64_t k = 0; k < rows * h; ++k) hidden[k] = hidden[k] > 0.0f ? hidden[k] : 0.0f;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < dim; ++j) e[i * stride + j] += residual.b2[j];
  }
  matmul(hidden, h, rows, h, residual.w2, dim, {e, stride}, e, stride);
}

}  // namespace HFH_ISA
}  // namespace hfh
