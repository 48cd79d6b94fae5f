// A trellis from Python: checked, laid out, and called by the rows of codes (coded_module.cpp).
#pragma once

#include <memory>
#include <stdexcept>
#include <vector>

#include "coded.hpp"
#include "coded_amx.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace hfh {
namespace binding {

using namespace nanobind::literals;

template <class T>
using Flat = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

inline hfh::LineVector<float> padded(const float* from, size_t count) {
  hfh::LineVector<float> to(count + hfh::kLanes, 0.0f);
  std::copy(from, from + count, to.begin());
  return to;
}

// A trellis: runs (n, 3) of steps, entries of a step and bits of a step; values (books, 2**state_bits).
class Trellis {
 public:
  Trellis(Rows<int64_t> runs, int state_bits, Rows<float> values, Flat<float> norms, bool constant) {
    require(runs.shape(1) == 3 && runs.shape(0) >= 1, "runs must have three columns");
    require(state_bits >= 1 && state_bits <= 16, "state_bits must be from 1 to 16");
    require(values.shape(1) == size_t{1} << state_bits, "values must have 2**state_bits columns");
    plan_.state_bits = state_bits;
    plan_.constant = constant;
    while ((size_t{1} << plan_.norm_bits) < norms.size()) ++plan_.norm_bits;
    require(norms.size() == 0 || norms.size() == size_t{1} << plan_.norm_bits, "norms must be a power of two");
    require(plan_.norm_bits <= 8, "there are too many norms");
    int64_t books = 0;
    for (size_t run = 0; run < runs.shape(0); ++run) {
      const int64_t* facts = runs.data() + 3 * run;
      require(facts[0] >= 1 && facts[0] <= 65536 && facts[1] >= 1 && facts[1] <= 8 && facts[2] >= 1 && facts[2] <= state_bits,
              "a run is out of range");
      plan_.add_run(facts[0], static_cast<int32_t>(facts[1]), static_cast<int32_t>(facts[2]), static_cast<int32_t>(books));
      books += facts[1];
      require(books <= 2048 && plan_.num_entries() <= 65536, "there are too many entries");
    }
    plan_.finish();
    require(static_cast<size_t>(books) == values.shape(0), "values must have a row for each book");
    require(plan_.ring_bits >= state_bits, "a ring is shorter than its state");
    values_ = padded(values.data(), values.size());
    norms_.assign(norms.data(), norms.data() + norms.size());
  }

  // The states (n, steps) of the rings that describe rows (n, entries) best; entry e weighs weight[e].
  void encode(Rows<float> rows, Flat<float> weight, Out<uint16_t> states, int num_threads) const {
    require(rows.shape(1) == static_cast<size_t>(plan_.num_entries()) && weight.size() == rows.shape(1), "rows have the wrong shape");
    require(states.shape(0) == rows.shape(0) && states.shape(1) == static_cast<size_t>(plan_.steps()), "states have the wrong shape");
    const int64_t count = rows.shape(0), entries = plan_.num_entries(), steps = plan_.steps();
    const float *x = rows.data(), *w = weight.data();
    uint16_t* to = states.data();
    nb::gil_scoped_release release;
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      hfh::TrellisEncoder encoder(hfh::simd(), plan_, values_.data());
      for (int64_t i = begin; i < end; ++i) {
        const std::vector<uint32_t>& path = encoder.encode(x + i * entries, w);
        std::copy(path.begin(), path.end(), to + i * steps);
      }
    });
  }

  const hfh::TrellisPlan& plan() const { return plan_; }

  int64_t width() const { return plan_.num_entries() + plan_.constant; }

  // An id's ring as whole bytes, and its factor; `codes` has `nbytes` bytes.
  float open(hfh::Simd simd, const uint8_t* codes, int64_t nbytes, int64_t id, uint8_t* ring) const {
    int64_t first = id * plan_.row_bits();
    const int64_t byte = first >> 3, needed = ((first & 7) + plan_.row_bits() + 7) / 8;
    std::vector<uint8_t> copy;
    if (byte + needed + hfh::kSlack > nbytes) {  // the last rows: nothing is read past the array
      copy.assign(needed + hfh::kSlack, 0);
      std::memcpy(copy.data(), codes + byte, needed);
      codes = copy.data();
      first &= 7;
    }
    const uint32_t norm = HFH_DISPATCH(simd, open_ring(plan_, codes, first, ring));
    return norms_.empty() ? 1.0f : norms_[norm];
  }

  // Adds what an id's ring names to z.
  void add(hfh::Simd simd, const uint8_t* codes, int64_t nbytes, int64_t id, uint8_t* ring, float* z) const {
    const float factor = open(simd, codes, nbytes, id, ring);
    HFH_DISPATCH(simd, trellis_entries(plan_, values_.data(), ring, factor, z));
  }

#ifdef HFH_AMX
  // Whether each value is exactly a bfloat16, in a table that trellis_halves reads.
  bool keep_halves() {
    if (!plan_.grouped) return false;
    halves_.assign(values_.size() + 1, 0);  // a load takes two of them
    for (size_t i = 0; i < values_.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &values_[i], 4);
      if (bits & 0xffffu) return halves_.clear(), false;
      halves_[i] = static_cast<uint16_t>(bits >> 16);
    }
    return true;
  }

  // What an id's ring names as bfloat16, without the factor, which is returned.
  float halves(const uint8_t* codes, int64_t nbytes, int64_t id, uint8_t* ring, uint16_t* to) const {
    const float factor = open(hfh::Simd::kAvx512, codes, nbytes, id, ring);
    hfh::coded_avx512::trellis_halves(plan_, halves_.data(), ring, to);
    if (plan_.constant) to[plan_.num_entries()] = 0x3f80;
    return factor;
  }
#endif

  bool has_norms() const { return !norms_.empty(); }

  void prefetch(const uint8_t* codes, int64_t id) const {
    const int64_t first = id * plan_.row_bits() >> 3, last = ((id + 1) * plan_.row_bits() - 1) >> 3;
    for (int64_t byte = first; byte <= last; byte += 64) __builtin_prefetch(codes + byte);
    __builtin_prefetch(codes + last);
  }

  int64_t codes_nbytes(int64_t ids) const { return (ids * plan_.row_bits() + 7) / 8; }

 private:
  hfh::TrellisPlan plan_;
  hfh::LineVector<float> values_;
  std::vector<float> norms_;
  std::vector<uint16_t> halves_;
};

}  // namespace binding
}  // namespace hfh
