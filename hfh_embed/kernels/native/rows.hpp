// Whole rows of a table, in blocks that are finished while they lie in the cache.
//
// Version 1 called numpy for everything but the shared sums. Version 2, here: the stages of spec.py one after the other on
// a block of 32 rows. Plain tables skip the block and write where the rows are wanted.
#pragma once

#include "fetch.hpp"
#include "levels.hpp"
#include "line.hpp"
#include "network.hpp"

namespace hfh {
namespace HFH_ISA {

inline int64_t scratch_floats(const Table& t) {
  const int64_t network = t.network.kind == Reconstruction::kSum && !t.weighs ? 0 : t.shared.num_hashes * t.shared.dim;
  const int64_t latent = t.map ? kBlockRows * t.latent_dim : 0;
  const int64_t all = (kBlockRows + 1) * t.embedding_dim + latent + kBlockRows * t.residual.hidden + network + kMaxHashes + t.levels.widest;
  return (all + 15) / 16 * 16;  // whole cache lines for each thread
}

// The rows of many ids in order, a block at a time.
class RowStream {
 public:
  RowStream(const Table& table, const int64_t* ids, int64_t count, float* scratch)
      : t_(table), ids_(ids), count_(count), line_form_(table.has_shared && table.shared.is_line_form() && !table.weighs &&
                                                        table.network.kind == Reconstruction::kSum),
        line_(table.shared, table.pool.data, table.scale, ids, line_form_ ? count : 0, table.num_embeddings,
              table.has_private ? &table.own : nullptr),
        fetches_(table.shared, table.pool, ids, table.has_shared && !line_form_ ? count : 0) {
    hidden_ = scratch;
    latent_ = hidden_ + kBlockRows * t_.residual.hidden;
    weights_ = latent_ + (t_.map ? kBlockRows * t_.latent_dim : 0);
    own_ = weights_ + kMaxHashes;
    values_ = own_ + t_.levels.widest;
    ahead(0);
  }

  // The next ``rows`` <= kBlockRows rows into out, ``stride`` apart. Their ids are copied first, so that a caller who writes
  // into them meanwhile gets other rows, but never a read outside the arrays.
  void take(int64_t rows, float* out, int64_t stride) {
    std::memcpy(block_ids_, ids_ + taken_, static_cast<size_t>(rows) * sizeof(int64_t));
    taken_ += rows;
    ahead(taken_);
    float* z = t_.map ? latent_ : out;
    const int64_t z_stride = t_.map ? t_.latent_dim : stride;
    latent(rows, z, z_stride);
    if (t_.map) matmul(latent_, t_.latent_dim, rows, t_.latent_dim, t_.map, t_.embedding_dim, {t_.bias, 0}, out, stride);
    if (t_.residual.hidden) correct(t_.residual, rows, t_.embedding_dim, out, stride, hidden_);
    for (int64_t i = 0; i < rows; ++i) {
      if (block_ids_[i] == t_.padding_id || (t_.zero_unknown && !has_own(block_ids_[i]))) {
        std::memset(out + i * stride, 0, static_cast<size_t>(t_.embedding_dim) * 4);
      }
    }
  }

 private:
  // Whether an id is one of the table's, which alone have coefficients of their own.
  bool has_own(int64_t id) const { return static_cast<uint64_t>(id) < static_cast<uint64_t>(t_.num_embeddings); }

  // Ask the memory for what belongs to the ids of the block that begins here.
  void ahead(int64_t from) const {
    const bool own = t_.has_private && (!line_form_ || t_.own.row_scale);
    if (!own && !t_.exact.count && !t_.levels.count) return;
    for (int64_t i = from; i < least(from + kBlockRows, count_); ++i) {
      int64_t id;
      std::memcpy(&id, ids_ + i, sizeof id);
      if (!has_own(id)) continue;
      if (t_.has_private) {
        if (!line_form_) prefetch_row(t_.own, id);
        if (t_.own.row_scale) prefetch(t_.own.row_scale + id);
      }
      if (t_.exact.count) prefetch(t_.exact.directory + (id >> t_.exact.shift));
      if (t_.levels.count) prefetch_level(t_.levels, t_.num_embeddings, id);
    }
  }

  void latent(int64_t rows, float* z, int64_t stride) {
    const int64_t before = t_.has_shared ? t_.latent_dim - t_.shared.dim : t_.latent_dim;
    for (int64_t i = 0; i < rows && before > 0; ++i) std::memset(z + i * stride, 0, static_cast<size_t>(before) * 4);
    if (line_form_) {
      line_.take(rows, z + before, stride);
    } else if (t_.has_shared) {
      for (int64_t i = 0; i < rows; ++i) shared(block_ids_[i], z + i * stride + before);
    }
    if (t_.has_private && !t_.weighs) {
      switch (t_.own.bits) {
        case 1: add_own<1>(rows, z, stride); break;
        case 2: add_own<2>(rows, z, stride); break;
        case 4: add_own<4>(rows, z, stride); break;
        case 8: add_own<8>(rows, z, stride); break;
        case 16: add_own<16>(rows, z, stride); break;
        default: add_own<32>(rows, z, stride);
      }
    }
    if (t_.levels.count) {
      for (int64_t i = 0; i < rows; ++i) {
        const LevelPlace found = places_[i] = level_place(t_.levels, t_.num_embeddings, block_ids_[i]);
        if (found.level >= 0) prefetch_row(t_.levels.each[found.level].values, found.place);
      }
      for (int64_t i = 0; i < rows; ++i) put_level(t_.levels, places_[i], t_.latent_dim, own_, z + i * stride);
    }
    if (!t_.exact.count) return;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = z + i * stride;
      if (const int64_t place = exact_place(t_.exact, block_ids_[i]); place >= 0) {
        const Values& values = t_.exact.values;
        set_values(row_of(values, place), values.bits, 0, values.count, scale_of(values, place), row);
      }
    }
  }

  template <int kBits>
  void add_own(int64_t rows, float* z, int64_t stride) const {
    const Values own = t_.own;  // a copy: nothing that is stored can change it, so it stays in registers
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t id = block_ids_[i];
      if (!has_own(id)) continue;
      if constexpr (kBits == 1) {
        add_signs(row_of(own, id), own.count, scale_of(own, id), z + i * stride);
      } else {
        add_values(row_of(own, id), kBits, 0, own.count, scale_of(own, id), z + i * stride);
      }
    }
  }

  void shared(int64_t id, float* row) {
    if (t_.network.kind == Reconstruction::kSum && !t_.weighs) return fetches_.take_sums(t_.scale, row);
    const float* weights = nullptr;
    if (t_.weighs && has_own(id)) {
      set_values(row_of(t_.own, id), t_.own.bits, 0, t_.own.count, scale_of(t_.own, id), weights_);
      weights = weights_;
    }
    const int64_t dim = t_.shared.dim, hashes = t_.shared.num_hashes;
    fetches_.take_values(weights, values_);
    if (t_.network.kind != Reconstruction::kSum) return reconstruct(t_.network, hashes, dim, values_, t_.scale, row);
    for (int64_t j = 0; j < dim; ++j) row[j] = values_[j];
    for (int64_t u = 1; u < hashes; ++u) {
      for (int64_t j = 0; j < dim; ++j) row[j] += values_[u * dim + j];
    }
    for (int64_t j = 0; j < dim; ++j) row[j] *= t_.scale;
  }

  const Table& t_;
  const int64_t* ids_;
  const int64_t count_;
  const bool line_form_;
  LineStream line_;
  FetchStream fetches_;
  float *hidden_, *latent_, *weights_, *own_, *values_;
  int64_t taken_ = 0;
  int64_t block_ids_[kBlockRows];
  LevelPlace places_[kBlockRows];
};

template <class Entry>
inline void clear(const Table& t, const int64_t* ids, int64_t count, Entry* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] == t.padding_id || (t.zero_unknown && ids[i] >= t.num_embeddings)) {
      std::memset(out + i * t.embedding_dim, 0, static_cast<size_t>(t.embedding_dim) * sizeof(Entry));
    }
  }
}

inline void rows(const Table& t, const int64_t* ids, int64_t count, void* out, Out how, float* scratch) {
  const bool half = how == Out::kHalf;
  const int64_t dim = t.embedding_dim;
  float* wide = static_cast<float*>(out);
  uint16_t* narrow = static_cast<uint16_t*>(out);
  if (t.is_plain() && t.shared.is_line_form()) {
    LineStream stream(t.shared, t.pool.data, t.scale, ids, count, t.num_embeddings);
    if (half) {
      stream.take(count, narrow, dim);
    } else if (how == Out::kStreamed) {
      stream.take<true>(count, wide, dim);
      fence();
    } else {
      stream.take(count, wide, dim);
    }
    if (t.padding_id >= 0 || t.zero_unknown) half ? clear(t, ids, count, narrow) : clear(t, ids, count, wide);
    return;
  }
  float* block = scratch;
  RowStream stream(t, ids, count, scratch + kBlockRows * dim);
  // A line's group at a time, lines are asked for while products of the rows before keep the processor busy.
  const int64_t together = t.map && t.shared.is_line_form() && !t.exact.count && !t.levels.count ? kGroup : kBlockRows;
  for (int64_t i = 0; i < count; i += together) {
    const int64_t some = least(together, count - i);
    stream.take(some, half ? block : wide + i * dim, dim);
    if (half) to_half(block, some * dim, narrow + i * dim);
  }
}

}  // namespace HFH_ISA
}  // namespace hfh
