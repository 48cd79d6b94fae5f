// The Python side of the codes of trained tables: checks what it is given, lets go of the interpreter lock, calls coded.hpp.

#include <memory>
#include <stdexcept>
#include <vector>

#include "coded.hpp"
#include "parallel.hpp"
#include "simd.hpp"

using namespace nanobind::literals;
using namespace hfh::binding;

namespace {

template <class T>
using Flat = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kBlockRows = 48;  // latent rows that stay in the cache between decoding and the map

std::vector<float> padded(const float* from, size_t count) {
  std::vector<float> to(count + hfh::kLanes, 0.0f);
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
    std::vector<float> squares(values_);
    for (float& value : squares) value *= value;
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      hfh::TrellisEncoder encoder(hfh::simd(), plan_, values_.data(), squares.data());
      for (int64_t i = begin; i < end; ++i) {
        const std::vector<uint32_t>& path = encoder.encode(x + i * entries, w);
        std::copy(path.begin(), path.end(), to + i * steps);
      }
    });
  }

  const hfh::TrellisPlan& plan() const { return plan_; }

  int64_t width() const { return plan_.num_entries() + plan_.constant; }

  // Adds what an id's ring names to z; `codes` has `nbytes` bytes.
  void add(hfh::Simd simd, const uint8_t* codes, int64_t nbytes, int64_t id, uint8_t* ring, float* z) const {
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
    const float factor = norms_.empty() ? 1.0f : norms_[norm];
    HFH_DISPATCH(simd, trellis_entries(plan_, values_.data(), ring, factor, z));
  }

  void prefetch(const uint8_t* codes, int64_t id) const {
    const int64_t first = id * plan_.row_bits() >> 3, last = ((id + 1) * plan_.row_bits() - 1) >> 3;
    for (int64_t byte = first; byte <= last; byte += 64) __builtin_prefetch(codes + byte);
    __builtin_prefetch(codes + last);
  }

  int64_t codes_nbytes(int64_t ids) const { return (ids * plan_.row_bits() + 7) / 8; }

 private:
  hfh::TrellisPlan plan_;
  std::vector<float> values_, norms_;
};

// A table whose rows are codes and a map: trellis and chunk codes added up, times (latent, dim), plus bias.
class CodedPart {
 public:
  CodedPart(int64_t num_embeddings, const Trellis* trellis, Rows<int64_t> chunks, Flat<float> codebooks, Rows<float> map, Flat<float> bias)
      : ids_(num_embeddings), latent_(map.shape(0)), dim_(map.shape(1)), map_(padded(map.data(), map.size())) {
    require(bias.size() == 0 || bias.size() == map.shape(1), "the bias has the wrong shape");
    require(ids_ >= 1 && latent_ >= 1 && dim_ >= 1 && latent_ <= 65536 && dim_ <= 65536, "sizes are out of range");
    if (bias.size()) bias_ = padded(bias.data(), bias.size());
    if (trellis) {
      trellis_ = std::make_unique<Trellis>(*trellis);
      require(trellis_->width() <= latent_, "the trellis is wider than the map");
    }
    require(chunks.shape(1) == 3, "chunks must have three columns");
    int64_t first = 0, bit = 0;
    for (size_t number = 0; number < chunks.shape(0); ++number) {
      const int64_t* c = chunks.data() + 3 * number;
      require(c[0] >= 0 && c[1] >= 1 && c[0] + c[1] <= latent_ && c[2] >= 1 && c[2] <= 16, "a chunk is out of range");
      chunks_.push_back({c[0], c[1], c[2], first, bit});
      first += c[1] << c[2];
      bit += c[2];
    }
    require(static_cast<size_t>(first) == codebooks.size(), "the codebooks have the wrong size");
    codebooks_ = padded(codebooks.data(), codebooks.size());
    chunk_bytes_ = (bit + 7) / 8;
  }

  // Rows of ids: -1, or the position of the first id that is refused.
  template <class T>
  int64_t rows(Flat<uint8_t> ring_codes, Flat<uint8_t> chunk_codes, Flat<int64_t> ids, Out<T> out, bool refuse_unknown, int64_t padding_id,
               int num_threads) const {
    const int64_t count = ids.size(), width = dim_;
    require(out.shape(0) == ids.size() && static_cast<int64_t>(out.shape(1)) == width, "out has the wrong shape");
    require(!trellis_ || static_cast<int64_t>(ring_codes.size()) >= trellis_->codes_nbytes(ids_), "there are too few codes");
    require(static_cast<int64_t>(chunk_codes.size()) >= chunk_bytes_ * ids_, "there are too few chunk codes");
    const int64_t* first = ids.data();
    T* to = out.data();
    nb::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
      if (first[i] < 0 || (refuse_unknown && first[i] >= ids_)) return i;
    }
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      const hfh::Simd simd = hfh::simd();
      std::vector<float> z(kBlockRows * latent_ + hfh::kLanes), wide(sizeof(T) == 4 ? 0 : kBlockRows * width);
      std::vector<uint8_t> ring(trellis_ ? trellis_->plan().ring_bits / 8 + 32 : 0);
      for (int64_t i = begin; i < end; i += kBlockRows) {
        const int64_t some = std::min(kBlockRows, end - i);
        latent(simd, ring_codes, chunk_codes, first + i, some, ring.data(), z.data());
        float* floats;
        if constexpr (sizeof(T) == 4) floats = to + i * width; else floats = wide.data();
        HFH_DISPATCH(simd, product(z.data(), latent_, some, map_.data(), latent_, dim_, bias_.empty() ? nullptr : bias_.data(), floats));
        for (int64_t j = 0; j < some; ++j) {  // an unknown id that is not refused is zero
          if (first[i + j] >= ids_ || first[i + j] == padding_id) std::fill(floats + j * width, floats + (j + 1) * width, 0.0f);
        }
        if constexpr (sizeof(T) == 2) kernels().to_half(floats, some * width, to + i * width);
      }
    });
    return -1;
  }

 private:
  struct Chunk {
    int64_t start, size, bits, first_value, first_bit;
  };

  void latent(hfh::Simd simd, const Flat<uint8_t>& ring_codes, const Flat<uint8_t>& chunk_codes, const int64_t* ids, int64_t count,
              uint8_t* ring, float* z) const {
    std::fill(z, z + count * latent_, 0.0f);
    for (int64_t j = 0; j < count; ++j) {
      if (ids[j] >= ids_) continue;
      if (trellis_) trellis_->prefetch(ring_codes.data(), ids[j]);
      if (chunk_bytes_) __builtin_prefetch(chunk_codes.data() + ids[j] * chunk_bytes_);
    }
    for (int64_t j = 0; j < count; ++j, z += latent_) {
      if (ids[j] >= ids_) continue;
      const uint8_t* codes = chunk_codes.data() + ids[j] * chunk_bytes_;
      for (const Chunk& chunk : chunks_) {
        uint32_t code = 0;
        for (int64_t bit = chunk.first_bit; bit < chunk.first_bit + chunk.bits;) {  // byte by byte: nothing is read past the row
          const int64_t shift = bit & 7, some = std::min<int64_t>(8 - shift, chunk.first_bit + chunk.bits - bit);
          code |= ((codes[bit >> 3] >> shift) & ((1u << some) - 1)) << (bit - chunk.first_bit);
          bit += some;
        }
        const float* value = codebooks_.data() + chunk.first_value + code * chunk.size;
        for (int64_t e = 0; e < chunk.size; ++e) z[chunk.start + e] += value[e];
      }
      if (trellis_) trellis_->add(simd, ring_codes.data(), ring_codes.size(), ids[j], ring, z);
    }
  }

  int64_t ids_, latent_, dim_;
  std::vector<float> map_, bias_, codebooks_;
  std::unique_ptr<Trellis> trellis_;
  std::vector<Chunk> chunks_;
  int64_t chunk_bytes_ = 0;
};

}  // namespace

void hfh::binding::bind_coded(nb::module_& m) {
  nb::class_<Trellis>(m, "Trellis")
      .def(nb::init<Rows<int64_t>, int, Rows<float>, Flat<float>, bool>(), "runs"_a.noconvert(), "state_bits"_a, "values"_a.noconvert(),
           "norms"_a.noconvert(), "constant"_a)
      .def("encode", &Trellis::encode, "rows"_a.noconvert(), "weight"_a.noconvert(), "states"_a.noconvert(), "num_threads"_a);
  nb::class_<CodedPart>(m, "CodedPart")
      .def(nb::init<int64_t, const Trellis*, Rows<int64_t>, Flat<float>, Rows<float>, Flat<float>>(), "num_embeddings"_a,
           "trellis"_a.none(), "chunks"_a.noconvert(), "codebooks"_a.noconvert(), "map"_a.noconvert(), "bias"_a.noconvert())
      .def("rows", &CodedPart::rows<float>, "ring_codes"_a.noconvert(), "chunk_codes"_a.noconvert(), "ids"_a.noconvert(),
           "out"_a.noconvert(), "refuse_unknown"_a, "padding_id"_a, "num_threads"_a)
      .def("rows_half", &CodedPart::rows<uint16_t>, "ring_codes"_a.noconvert(), "chunk_codes"_a.noconvert(), "ids"_a.noconvert(),
           "out"_a.noconvert(), "refuse_unknown"_a, "padding_id"_a, "num_threads"_a);
}
