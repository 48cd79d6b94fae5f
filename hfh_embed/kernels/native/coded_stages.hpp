// The codes of rows from Python: stages of centroids whose sum is near a row, by a beam search (coded_stages_body.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "coded_trellis.hpp"

namespace hfh {
namespace binding {

// Centroids (stages * kStageCodes, width), and their products with each other.
class StageSearch {
 public:
  StageSearch(Rows<float> centroids, Rows<float> products)
      : count_(centroids.shape(0)), stages_(count_ / hfh::kStageCodes), width_(centroids.shape(1)), half_(count_),
        units_(stages_), turned_(padded(centroids.data(), centroids.size())) {
    require(count_ >= hfh::kStageCodes && count_ % hfh::kStageCodes == 0 && stages_ <= kMostStages, "stages must have 256 centroids each");
    require(width_ >= 1 && width_ <= 65536, "centroids are out of range");
    require(static_cast<int64_t>(products.shape(0)) == count_ && static_cast<int64_t>(products.shape(1)) == count_,
            "products must have a row and a column for each centroid");
    keep_products(products.data());
    for (int64_t c = 0; c < count_; ++c) {
      half_[c] = products.data()[c * count_ + c] / 2;
      for (int64_t k = 0; k < width_; ++k) turned_[k * count_ + c] = -centroids.data()[c * width_ + k];
    }
#ifdef HFH_AMX
    if (hfh::tiles_allowed() && hfh::TileMap::suits(centroids.data(), centroids.size())) {
      tiles_ = std::make_unique<hfh::TileMap>(turned_.data(), width_, count_, half_.data(), 2);
    }
#endif
  }

  // codes (n, stages) of rows (n, width): ``beam`` partial codes are kept from one stage to the next.
  void search(Rows<float> rows, int beam, Out<uint8_t> codes, int num_threads) const {
    const int64_t count = rows.shape(0);
    require(static_cast<int64_t>(rows.shape(1)) == width_, "rows have the wrong shape");
    require(static_cast<int64_t>(codes.shape(0)) == count && static_cast<int64_t>(codes.shape(1)) == stages_, "codes have the wrong shape");
    require(beam >= 1 && beam <= kMostBeam, "beam must be from 1 to 16");
    const float* x = rows.data();
    uint8_t* to = codes.data();
    nb::gil_scoped_release release;
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      hfh::LineVector<float> base(kSearchRows * count_), score(kMostBeam * hfh::kStageCodes);
      std::vector<uint16_t> parts(workspace());
      for (int64_t i = begin; i < end; i += kSearchRows) {
        const int64_t some = std::min(kSearchRows, end - i);
        multiply(x + i * width_, some, parts.data(), base.data());
        for (int64_t j = 0; j < some; ++j) best(base.data() + j * count_, beam, score.data(), to + (i + j) * stages_);
      }
    });
  }

 private:
  static constexpr int64_t kMostStages = 64, kMostBeam = 16, kSearchRows = 32;

  // A code up to some stage.
  struct Partial {
    float cost;
    uint8_t codes[kMostStages];
  };

  // Products as 16-bit integers: half the memory to read, and the sum of one from each stage still fits.
  void keep_products(const float* products) {
    products_.resize(count_ * count_);
    for (int64_t stage = 0; stage < stages_; ++stage) {
      const int64_t from = stage * hfh::kStageCodes, to = from + hfh::kStageCodes;
      float most = 0;
      for (int64_t other = 0; other < stage; ++other) {
        float largest = 0;
        for (int64_t row = other * hfh::kStageCodes; row < (other + 1) * hfh::kStageCodes; ++row) {
          for (int64_t c = from; c < to; ++c) largest = std::max(largest, std::abs(products[row * count_ + c]));
        }
        most += largest;
      }
      require(std::isfinite(most), "centroids are out of range");
      units_[stage] = std::max(most, 1e-30f) / (32767 - kMostStages);
      for (int64_t row = 0; row < from; ++row) {
        for (int64_t c = from; c < to; ++c) {
          products_[row * count_ + c] = static_cast<int16_t>(std::lrint(products[row * count_ + c] / units_[stage]));
        }
      }
    }
  }

  int64_t workspace() const {
#ifdef HFH_AMX
    if (tiles_) return tiles_->workspace();
#endif
    return 0;
  }

  // base (rows, count_): half the squared length of each centroid less its product with a row.
  void multiply(const float* x, int64_t rows, uint16_t* parts, float* base) const {
#ifdef HFH_AMX
    if (tiles_) return tiles_->multiply(x, rows, parts, base);
#endif
    (void)parts;
    HFH_DISPATCH(hfh::simd(), product(x, width_, rows, turned_.data(), width_, count_, half_.data(), base));
  }

  void best(const float* base, int64_t beam, float* score, uint8_t* codes) const {
    Partial partials[2][kMostBeam];
    alignas(64) float shared[hfh::kStageCodes];
    Partial *now = partials[0], *next = partials[1];
    now[0].cost = 0;
    int64_t kept = 1;
    for (int64_t stage = 0; stage < stages_; ++stage, std::swap(now, next)) {
      hfh::Floats least = hfh::Floats{} + std::numeric_limits<float>::infinity();
      const int16_t* named[kMostStages];
      const auto scores = [&](const float* start, const Partial& partial, int64_t first, int64_t last, float cost, float* to) {
        for (int64_t j = first; j < last; ++j) {
          named[j - first] = products_.data() + (j * hfh::kStageCodes + partial.codes[j]) * count_ + stage * hfh::kStageCodes;
        }
        HFH_DISPATCH(hfh::simd(), stage_scores(start, named, last - first, units_[stage], cost, to, least));
      };
      const float* start = base + stage * hfh::kStageCodes;
      int64_t common = kept > 1 ? stage : 0;  // the first codes of all partial codes, most often the same
      for (int64_t p = 1; p < kept; ++p) {
        common = std::mismatch(now[0].codes, now[0].codes + common, now[p].codes).first - now[0].codes;
      }
      if (common > 0) {
        scores(start, now[0], 0, common, 0, shared);
        least = hfh::Floats{} + std::numeric_limits<float>::infinity();
        start = shared;
      }
      for (int64_t p = 0; p < kept; ++p) scores(start, now[p], common, stage, now[p].cost, score + p * hfh::kStageCodes);
      int32_t places[kMostBeam];
      const int64_t wanted = stage + 1 < stages_ ? beam : 1;
      const int64_t found = HFH_DISPATCH(hfh::simd(), least_scores(score, kept * hfh::kStageCodes, least, wanted, places));
      for (int64_t p = 0; p < found; ++p) {
        next[p] = now[places[p] / hfh::kStageCodes];
        next[p].cost = score[places[p]];
        next[p].codes[stage] = static_cast<uint8_t>(places[p] % hfh::kStageCodes);
      }
      kept = found;
    }
    std::copy(now[0].codes, now[0].codes + stages_, codes);
  }

  int64_t count_, stages_, width_;
  std::vector<float> half_, units_;
  hfh::LineVector<float> turned_;
  hfh::LineVector<int16_t> products_;
#ifdef HFH_AMX
  std::unique_ptr<hfh::TileMap> tiles_;
#endif
};

}  // namespace binding
}  // namespace hfh
