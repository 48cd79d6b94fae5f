// A table's levels, and what every part of a table is kept by.
#pragma once

#include <algorithm>
#include <vector>

#include "directory.hpp"
#include "recycled.hpp"

namespace hfh {
namespace binding {
namespace {

// The facts of a table, the arrays that they point at, and its levels.
class LevelTable {
 public:
  explicit LevelTable(const hfh::Table& table) : table_(table) {}

  // One level after the other, then set_level_index. ``ids`` are the level's where the index has ids.
  void add_level(int64_t count, Stored values, int bits, int64_t dim, float scale, nb::object map, nb::object ids) {
    require(table_.levels.count == 0 && level_count_ < hfh::kMaxLevels, "there are too many levels, or they are complete");
    require(count >= 1 && dim >= 1 && dim <= table_.latent_dim, "the level's sizes are out of range");
    require(map.is_none() == (dim == table_.latent_dim), "a level needs a map where its rows are narrower, and only there");
    hfh::Level level;
    level.count = count;
    level.values = values_of(values, bits, dim, scale, nb::none(), count);
    if (!map.is_none()) {
      const auto given = array_of<Matrix>(map, "a level's map must be a contiguous float32 matrix");
      require(static_cast<int64_t>(given.shape(0)) == dim && static_cast<int64_t>(given.shape(1)) == table_.latent_dim, "a level's map has the wrong shape");
      keep(given);
      level.map = given.data();
    }
    if (!ids.is_none()) {
      take_ids(level.ids, ids);
      require(level.ids.count == count, "a level needs as many ids as rows");
      kept_.push_back(ids);
    }
    table_.levels.each[level_count_++] = level;
    table_.levels.widest = std::max(table_.levels.widest, dim);
  }

  void set_level_index(int index, bool adds, nb::object codes, int code_bits) {
    hfh::Levels& levels = table_.levels;
    require(levels.count == 0 && level_count_ >= 1, "there are no levels, or they are complete");
    require(index >= 0 && index <= 2, "the index is out of range");
    levels.index = static_cast<hfh::LevelIndex>(index);
    int64_t total = 0;
    for (int k = 0; k < level_count_; ++k) {
      require(levels.each[k].count <= table_.num_embeddings - total, "levels have more ids than the table");
      require((levels.each[k].ids.count > 0) == (levels.index == hfh::LevelIndex::kIds), "levels have ids where the index has, and only there");
      total += levels.each[k].count;
    }
    if (levels.index == hfh::LevelIndex::kCodes) {
      levels.first_code = total < table_.num_embeddings;
      require((code_bits == 1 || code_bits == 2 || code_bits == 4) && level_count_ + levels.first_code <= 1 << code_bits, "codes have too few bits");
      const auto given = array_of<Stored>(codes, "codes must be a contiguous uint8 array");
      require(table_.num_embeddings <= static_cast<int64_t>(given.size()) * 8 / code_bits, "there are fewer codes than ids");
      keep(given);
      levels.codes = {given.data(), static_cast<int64_t>(given.size())};
      levels.code_bits = code_bits;
    }
    levels.adds = adds;
    levels.count = level_count_;
  }

 protected:
  template <class Array>
  static Array array_of(const nb::object& given, const char* what) {
    Array array;
    require(nb::try_cast(given, array, false), what);
    return array;
  }

  template <class Array>
  void keep(const Array& array) {
    require(aligned(array), "an array is not aligned");
    kept_.push_back(nb::cast(array));
  }

  hfh::Values values_of(Stored bytes, int bits, int64_t count, float scale, nb::object row_scale, int64_t rows) {
    require(bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16 || bits == 32, "bits must be 1, 2, 4, 8, 16 or 32");
    hfh::Values values{{bytes.data(), static_cast<int64_t>(bytes.size())}, bits, count, scale, nullptr};
    require(rows <= values.bytes.size / values.row_bytes(), "values have fewer bytes than their rows need");
    keep(bytes);
    if (!row_scale.is_none()) {
      const auto given = array_of<In<uint16_t, 1>>(row_scale, "scales must be a contiguous uint16 array");
      require(static_cast<int64_t>(given.size()) >= rows, "there are fewer scales than rows");
      keep(given);
      values.row_scale = given.data();
    }
    return values;
  }

  // What finds the ids of levels, made at the first lookup.
  void prepare_levels() const {
    if (table_.levels.index == hfh::LevelIndex::kCodes) count_levels(table_.levels, table_.num_embeddings, levels_before_);
    for (int k = 0; k < table_.levels.count; ++k) {
      hfh::Level& level = table_.levels.each[k];
      if (level.ids.count) make_directory(level.ids, table_.num_embeddings, level_directories_[k]);
      on_lines(level.map, level.values.count * table_.latent_dim);
    }
  }

  // A matrix that does not begin on a cache line is copied, since products read it for every few rows.
  void on_lines(const float*& matrix, int64_t count) const {
    if (!matrix || reinterpret_cast<uintptr_t>(matrix) % 64 == 0) return;
    copies_.push_back(aligned_floats(count));
    matrix = std::copy_n(matrix, count, copies_.back().get()) - count;
  }

  mutable hfh::Table table_;
  std::vector<nb::object> kept_;
  mutable std::vector<Aligned> copies_;

 private:
  int level_count_ = 0;
  mutable std::vector<int64_t> levels_before_, level_directories_[hfh::kMaxLevels];
};

}  // namespace
}  // namespace binding
}  // namespace hfh
