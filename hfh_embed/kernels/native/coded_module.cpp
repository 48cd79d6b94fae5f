// The Python side of the codes of trained tables: checks what it is given, lets go of the interpreter lock, calls coded.hpp.

#include <algorithm>
#include <memory>
#include <vector>

#include "coded_stages.hpp"
#include "coded_trellis.hpp"
#include "numpy_arrays.hpp"

namespace hfh {
namespace binding {
namespace {

constexpr int64_t kBlockRows = 32;       // latent rows that stay in the cache between decoding and the map
constexpr int64_t kKeepLockIds = 256;    // fewer ids are answered sooner than the lock is handed over
constexpr int64_t kMostMapped = 1 << 19;  // floats of chunks that are kept mapped: what a core's cache holds
constexpr int64_t kMostStarts = 8;       // rows that are summed at once

// A table whose rows are codes and a map: trellis and chunk codes added up, times (latent, dim), plus bias.
class CodedPart {
 public:
  CodedPart(int64_t num_embeddings, const Trellis* trellis, Flat<uint8_t> ring_codes, Rows<int64_t> chunks, Flat<float> codebooks,
            Flat<uint8_t> chunk_codes, Rows<float> map, Flat<float> bias, int64_t padding_id, bool refuse_unknown)
      : ids_(num_embeddings), latent_(map.shape(0)), dim_(map.shape(1)), padding_id_(padding_id), refuse_unknown_(refuse_unknown),
        ring_codes_(ring_codes), chunk_codes_(chunk_codes), map_(padded(map.data(), map.size())) {
    require(bias.size() == 0 || bias.size() == map.shape(1), "the bias has the wrong shape");
    require(ids_ >= 1 && latent_ >= 1 && dim_ >= 1 && latent_ <= 65536 && dim_ <= 65536, "sizes are out of range");
    if (bias.size()) bias_ = padded(bias.data(), bias.size());
    if (trellis) {
      trellis_ = std::make_unique<Trellis>(*trellis);
      require(trellis_->width() <= latent_, "the trellis is wider than the map");
      require(static_cast<int64_t>(ring_codes.size()) >= trellis_->codes_nbytes(ids_), "there are too few codes");
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
    require(static_cast<int64_t>(chunk_codes.size()) >= chunk_bytes_ * ids_, "there are too few chunk codes");
#ifdef HFH_AMX
    if (hfh::tiles_allowed() && hfh::TileMap::suits(map.data(), map.size())) {
      const bool ring = trellis_ && (chunks_.empty() ? !(trellis_->has_norms() && bias.size()) : map_chunks());
      const bool plain = ring && trellis_->keep_halves();
      const float* own = bias.size() ? bias.data() : nullptr;
      tiles_ = std::make_unique<hfh::TileMap>(map.data(), latent_, dim_, own, 3);
      if (plain) plain_ = std::make_unique<hfh::TileMap>(map.data(), latent_, dim_, own, 1);
    }
#endif
  }

  // As Table::lookup: the rows as a new array, or None where the plain case does not apply.
  nb::object lookup(nb::handle ids, nb::handle dtype, int num_threads) const {
    const bool half = dtype.ptr() == half_type();
    PyArrayObject* given = plain_array(ids, NPY_INT64);
    if (given == nullptr || PyArray_NDIM(given) > 30 || (!half && dtype.ptr() != float_type())) return nb::none();
    nb::object rows = array_for(given, dim_, half);
    const auto* first = static_cast<const int64_t*>(PyArray_DATA(given));
    void* out = PyArray_DATA(reinterpret_cast<PyArrayObject*>(rows.ptr()));
    return compute(first, PyArray_SIZE(given), out, half, num_threads) >= 0 ? nb::none() : rows;
  }

  // Rows into ``out`` (B, D), float32 or float16: -1, or the position of the first id that is refused.
  int64_t rows(Ids ids, nb::handle out, int num_threads) const {
    require(aligned(ids), "ids must be aligned");
    bool half;
    void* to = output(out, static_cast<int64_t>(ids.size()), dim_, half);
    return compute(ids.data(), static_cast<int64_t>(ids.size()), to, half, num_threads);
  }

  // out (B, D) = (z (B, R) + the codes of ids) @ map + bias; an id outside the table has no codes. z is written over.
  void add(Ids ids, Out<float> z, Out<float> out, int num_threads) const {
    const int64_t count = ids.size();
    require(aligned(ids), "ids must be aligned");
    require(static_cast<int64_t>(z.shape(0)) == count && static_cast<int64_t>(z.shape(1)) == latent_, "z has the wrong shape");
    require(static_cast<int64_t>(out.shape(0)) == count && static_cast<int64_t>(out.shape(1)) == dim_, "out has the wrong shape");
    const std::vector<int64_t> own(ids.data(), ids.data() + count);  // nobody else can change this copy
    float *entries = z.data(), *to = out.data();
    nb::gil_scoped_release release;
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      Workspace work(*this, false, false);
      for (int64_t i = begin; i < end; i += kBlockRows) {
        const int64_t some = std::min(kBlockRows, end - i);
        prefetch(own.data() + i, some);
        codes(own.data() + i, some, work.ring.data(), entries + i * latent_);
        mapped(entries + i * latent_, some, work.parts.data(), to + i * dim_);
      }
    });
  }

  // As Table::products. Hidden states are taken to latent entries once, so that no row has to be mapped.
  void products(int64_t first, Rows<float> hidden, Out<float> out, int num_threads) const {
    const int64_t tokens = hidden.shape(0), count = out.shape(1);
    require(static_cast<int64_t>(hidden.shape(1)) == dim_ && static_cast<int64_t>(out.shape(0)) == tokens, "out or hidden has the wrong shape");
    require(aligned(hidden) && aligned(out), "arrays must be aligned");
    require(first >= 0 && first <= ids_ && count <= ids_ - first, "ids are outside the table");
    const std::vector<float> states = latent_states(hidden.data(), tokens), starts = bias_products(hidden.data(), tokens);
    float* const to = out.data();
    const nb::gil_scoped_release release;
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      Workspace work(*this, false, false);
      int64_t ids[kBlockRows];
      for (int64_t r = begin; r < end; r += kBlockRows) {
        const int64_t some = std::min(kBlockRows, end - r);
        for (int64_t j = 0; j < some; ++j) ids[j] = first + r + j;
        std::fill(work.z.begin(), work.z.end(), 0.0f);
        codes(ids, some, work.ring.data(), work.z.data());
        kernels().products(work.z.data(), some, latent_, states.data(), tokens, to + r, count);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t j = 0; j < some; ++j) to[t * count + r + j] += starts[t];
        }
      }
    });
  }

 private:
  struct Chunk {
    int64_t start, size, bits, first_value, first_bit;
  };

  // A hidden state's product with a row of the map, or with the bias.
  float product_of(const float* row, const float* state) const {
    double sum = 0;
    for (int64_t d = 0; d < dim_; ++d) sum += static_cast<double>(row[d]) * state[d];
    return static_cast<float>(sum);
  }

  // hidden (tokens, dim) times the map the other way: (tokens, latent).
  std::vector<float> latent_states(const float* hidden, int64_t tokens) const {
    std::vector<float> states(tokens * latent_);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t k = 0; k < latent_; ++k) states[t * latent_ + k] = product_of(map_.data() + k * dim_, hidden + t * dim_);
    }
    return states;
  }

  std::vector<float> bias_products(const float* hidden, int64_t tokens) const {
    std::vector<float> sums(tokens, 0.0f);
    for (int64_t t = 0; t < tokens && !bias_.empty(); ++t) sums[t] = product_of(bias_.data(), hidden + t * dim_);
    return sums;
  }

  // A chunk's code among an id's, byte by byte: nothing is read past the row.
  static uint32_t code_of(const uint8_t* own, const Chunk& chunk) {
    if (chunk.bits == 8 && !(chunk.first_bit & 7)) return own[chunk.first_bit >> 3];
    uint32_t code = 0;
    for (int64_t bit = chunk.first_bit; bit < chunk.first_bit + chunk.bits;) {
      const int64_t shift = bit & 7, some = std::min<int64_t>(8 - shift, chunk.first_bit + chunk.bits - bit);
      code |= ((own[bit >> 3] >> shift) & ((1u << some) - 1)) << (bit - chunk.first_bit);
      bit += some;
    }
    return code;
  }

  // What one thread needs.
  struct Workspace {
    Workspace(const CodedPart& of, bool plain, bool half)
        : z(plain ? 0 : kBlockRows * of.latent_), wide(half ? kBlockRows * of.dim_ : 0),
          ring(of.trellis_ ? of.trellis_->plan().ring_bits / 8 + 32 : 0), parts(of.workspace(plain)) {}

    std::vector<float> z, wide;
    std::vector<uint8_t> ring;
    std::vector<uint16_t> parts;
  };

  int64_t compute(const int64_t* ids, int64_t count, void* out, bool half, int num_threads) const {
    if (count < kKeepLockIds) return compute_unlocked(ids, count, out, half, num_threads);
    nb::gil_scoped_release release;
    return compute_unlocked(ids, count, out, half, num_threads);
  }

  int64_t compute_unlocked(const int64_t* ids, int64_t count, void* out, bool half, int num_threads) const {
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || (refuse_unknown_ && ids[i] >= ids_)) return i;
    }
    hfh::parallel(count, hfh::threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
      Workspace work(*this, plain(), half);
      int64_t own[kBlockRows];  // a copy, so that a caller who writes into the ids gets other rows, but no read outside the arrays
      for (int64_t i = begin; i < end; i += kBlockRows) {
        const int64_t some = std::min(kBlockRows, end - i);
        for (int64_t j = 0; j < some; ++j) own[j] = std::max<int64_t>(ids[i + j], 0);
        float* to = half ? work.wide.data() : static_cast<float*>(out) + i * dim_;
        block(own, some, work, to);
        for (int64_t j = 0; j < some; ++j) {  // an unknown id that is not refused is zero
          if (own[j] >= ids_ || own[j] == padding_id_) std::fill(to + j * dim_, to + (j + 1) * dim_, 0.0f);
        }
        if (half) kernels().to_half(to, some * dim_, static_cast<uint16_t*>(out) + i * dim_);
      }
    });
    return -1;
  }

  void block(const int64_t* ids, int64_t count, Workspace& work, float* out) const {
    prefetch(ids, count);
    if (plain()) return plain_rows(ids, count, work, out);
    std::fill(work.z.begin(), work.z.end(), 0.0f);
    codes(ids, count, work.ring.data(), work.z.data());
    mapped(work.z.data(), count, work.parts.data(), out);
  }

#ifdef HFH_AMX
  // Whether rows are one ring each, whose values tiles take as they are, and what chunks add, which is mapped beforehand.
  bool plain() const { return plain_ != nullptr; }

  // Keeps each chunk's entries as parts of a row, with the bias in the first, where that takes little memory.
  bool map_chunks() {
    if (trellis_->has_norms() || dim_ % hfh::kTileRows) return false;
    int64_t codes = 0;
    for (const Chunk& chunk : chunks_) codes += int64_t{1} << chunk.bits;
    if (codes * dim_ > kMostMapped) return false;
    mapped_.reserve(codes * dim_);
    std::vector<double> row(dim_);
    for (const Chunk& chunk : chunks_) {
      for (int64_t code = 0; code < int64_t{1} << chunk.bits; ++code) {
        const float* from = codebooks_.data() + chunk.first_value + code * chunk.size;
        std::fill(row.begin(), row.end(), 0.0);
        if (&chunk == &chunks_[0] && !bias_.empty()) std::copy(bias_.begin(), bias_.begin() + dim_, row.begin());
        for (int64_t k = 0; k < chunk.size; ++k) {
          for (int64_t d = 0; d < dim_; ++d) row[d] += static_cast<double>(from[k]) * map_[(chunk.start + k) * dim_ + d];
        }
        mapped_.insert(mapped_.end(), row.begin(), row.end());
      }
    }
    return true;
  }

  // out (dim) = what an id's chunks add to its row.
  void chunk_row(int64_t id, float* out) const {
    const uint8_t* own = chunk_codes_.data() + id * chunk_bytes_;
    const float* from[kMostStarts];
    int64_t first = 0, some = 0;
    for (const Chunk& chunk : chunks_) {
      from[some++] = mapped_.data() + (first + code_of(own, chunk)) * dim_;
      first += int64_t{1} << chunk.bits;
      if (some < kMostStarts && &chunk != &chunks_.back()) continue;
      hfh::coded_avx512::sum_rows(from, some, dim_, &chunk - chunks_.data() >= kMostStarts, out);
      some = 0;
    }
  }

  int64_t workspace(bool plain) const { return !tiles_ ? 0 : plain ? plain_->workspace() : tiles_->workspace(); }

  void plain_rows(const int64_t* ids, int64_t count, Workspace& work, float* out) const {
    float factors[hfh::kBlock];
    for (int64_t j = 0; j < count; ++j) {
      factors[j] = 0;
      if (ids[j] >= ids_) {
        if (!mapped_.empty()) std::fill(out + j * dim_, out + (j + 1) * dim_, 0.0f);
        continue;
      }
      if (!mapped_.empty()) chunk_row(ids[j], out + j * dim_);
      uint16_t* to = work.parts.data() + j * plain_->stride();
      factors[j] = trellis_->halves(ring_codes_.data(), ring_codes_.size(), ids[j], work.ring.data(), to);
    }
    plain_->product(work.parts.data(), count, out, !mapped_.empty());
    if (trellis_->has_norms()) hfh::coded_avx512::scale_rows(factors, count, dim_, out);
  }
#else
  static constexpr bool plain() { return false; }
  static constexpr int64_t workspace(bool) { return 0; }
  void plain_rows(const int64_t*, int64_t, Workspace&, float*) const {}
#endif

  // out (count, dim) = latent rows times the map, plus the bias.
  void mapped(const float* z, int64_t count, uint16_t* parts, float* out) const {
#ifdef HFH_AMX
    if (tiles_) return tiles_->multiply(z, count, parts, out);
#endif
    (void)parts;
    HFH_DISPATCH(hfh::simd(), product(z, latent_, count, map_.data(), latent_, dim_, bias_.empty() ? nullptr : bias_.data(), out));
  }

  void prefetch(const int64_t* ids, int64_t count) const {
    for (int64_t j = 0; j < count; ++j) {
      if (ids[j] >= ids_) continue;
      if (trellis_) trellis_->prefetch(ring_codes_.data(), ids[j]);
      if (chunk_bytes_) __builtin_prefetch(chunk_codes_.data() + ids[j] * chunk_bytes_);
    }
  }

  // Adds what the codes of ids within the table name to latent rows z.
  void codes(const int64_t* ids, int64_t count, uint8_t* ring, float* z) const {
    for (int64_t j = 0; j < count; ++j, z += latent_) {
      if (static_cast<uint64_t>(ids[j]) >= static_cast<uint64_t>(ids_)) continue;
      const uint8_t* own = chunk_codes_.data() + ids[j] * chunk_bytes_;
      for (const Chunk& chunk : chunks_) {
        const float* from = codebooks_.data() + chunk.first_value + code_of(own, chunk) * chunk.size;
        HFH_DISPATCH(hfh::simd(), add_floats(from, chunk.size, z + chunk.start));
      }
      if (trellis_) trellis_->add(hfh::simd(), ring_codes_.data(), ring_codes_.size(), ids[j], ring, z);
    }
  }

  int64_t ids_, latent_, dim_, padding_id_;
  bool refuse_unknown_;
  Flat<uint8_t> ring_codes_, chunk_codes_;
  hfh::LineVector<float> map_, bias_, codebooks_;
  std::unique_ptr<Trellis> trellis_;
#ifdef HFH_AMX
  std::unique_ptr<hfh::TileMap> tiles_, plain_;
  hfh::LineVector<float> mapped_;  // of each code of each chunk (dim)
#endif
  std::vector<Chunk> chunks_;
  int64_t chunk_bytes_ = 0;
};

}  // namespace

void bind_coded(nb::module_& m) {
  if (_import_array() < 0) throw nb::python_error();
  nb::class_<Trellis>(m, "Trellis")
      .def(nb::init<Rows<int64_t>, int, Rows<float>, Flat<float>, bool>(), "runs"_a.noconvert(), "state_bits"_a, "values"_a.noconvert(),
           "norms"_a.noconvert(), "constant"_a)
      .def("encode", &Trellis::encode, "rows"_a.noconvert(), "weight"_a.noconvert(), "states"_a.noconvert(), "num_threads"_a);
  nb::class_<StageSearch>(m, "StageSearch")
      .def(nb::init<Rows<float>, Rows<float>>(), "centroids"_a.noconvert(), "products"_a.noconvert())
      .def("search", &StageSearch::search, "rows"_a.noconvert(), "beam"_a, "codes"_a.noconvert(), "num_threads"_a);
  nb::class_<CodedPart>(m, "CodedPart")
      .def(nb::init<int64_t, const Trellis*, Flat<uint8_t>, Rows<int64_t>, Flat<float>, Flat<uint8_t>, Rows<float>, Flat<float>, int64_t,
                    bool>(),
           "num_embeddings"_a, "trellis"_a.none(), "ring_codes"_a.noconvert(), "chunks"_a.noconvert(), "codebooks"_a.noconvert(),
           "chunk_codes"_a.noconvert(), "map"_a.noconvert(), "bias"_a.noconvert(), "padding_id"_a, "refuse_unknown"_a)
      .def("lookup", &CodedPart::lookup, "ids"_a.none(), "dtype"_a.none(), "num_threads"_a = 1)
      .def("rows", &CodedPart::rows, "ids"_a.noconvert(), "out"_a, "num_threads"_a = 1)
      .def("products", &CodedPart::products, "first"_a, "hidden"_a.noconvert(), "out"_a.noconvert(), "num_threads"_a)
      .def("add", &CodedPart::add, "ids"_a.noconvert(), "z"_a.noconvert(), "out"_a.noconvert(), "num_threads"_a = 1);
}

}  // namespace binding
}  // namespace hfh
