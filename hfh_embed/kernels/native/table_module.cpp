// The Python side of lookups: checks what it is given, owns what the kernels point at, lets go of the interpreter lock. Calls
// are kept thin, because for a few ids the call is the cost: arrays go through numpy's own C API.

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "level_table.hpp"
#include "numpy_arrays.hpp"
#include "parallel.hpp"

using namespace nanobind::literals;

namespace hfh {
namespace binding {
namespace {

constexpr int64_t kKeepLockIds = 256;  // fewer ids are answered sooner than the lock is handed over
constexpr int64_t kNone = INT64_MAX;   // no place of an id
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// One table with everything that its rows are computed from; keeps the arrays alive.
class Table : public LevelTable {
 public:
  Table(int64_t num_embeddings, int64_t embedding_dim, int64_t latent_dim, int64_t padding_id, bool refuse_unknown,
        bool zero_unknown)
      : LevelTable({num_embeddings, embedding_dim, latent_dim, padding_id, refuse_unknown, zero_unknown}) {
    require(num_embeddings >= 1 && embedding_dim >= 1 && embedding_dim <= 65536 && latent_dim >= 1 && latent_dim <= 65536,
            "sizes are out of range");
  }

  void set_shared(uint64_t key, int64_t slots, int bits, int64_t dim, int64_t num_hashes, int64_t chunk_size, int locality,
                  int64_t lines, bool signs, Stored pool, float scale) {
    require(!table_.has_shared, "the shared part is already there");  // networks and weights were measured against it
    const hfh::Shared shared = shared_of(key, slots, bits, dim, num_hashes, chunk_size, locality, lines, signs);
    require(dim <= table_.latent_dim, "the shared part is longer than the latent row");
    require(static_cast<int64_t>(pool.size()) >= (slots * bits + 7) / 8, "the pool has fewer bytes than its slots need");
    keep(pool);
    table_.shared = shared;
    table_.has_shared = true;
    table_.pool = {pool.data(), static_cast<int64_t>(pool.size())};
    table_.scale = scale;
  }

  // A pool in training changes its scale with every step.
  void set_scale(float scale) { table_.scale = scale; }

  void set_bilinear(Floats linear, Matrix quadratic) {
    const size_t hashes = table_.shared.num_hashes;
    require(table_.has_shared && linear.size() == hashes && quadratic.shape(0) == hashes && quadratic.shape(1) == hashes,
            "the network does not fit the hash functions");
    keep(linear), keep(quadratic);
    table_.network = {hfh::Reconstruction::kBilinear, 0, linear.data(), nullptr, quadratic.data(), nullptr};
  }

  void set_mlp(Matrix w1, Floats b1, Floats w2, Floats b2) {
    require(table_.has_shared && static_cast<int64_t>(w1.shape(0)) == table_.shared.num_hashes && b1.size() == w1.shape(1) &&
                w2.size() == w1.shape(1) && b2.size() == 1,
            "the network does not fit the hash functions");
    keep(w1), keep(b1), keep(w2), keep(b2);
    table_.network = {hfh::Reconstruction::kMlp, static_cast<int64_t>(w1.shape(1)), w1.data(), b1.data(), w2.data(), b2.data()};
  }

  void set_private(Stored values, int bits, int64_t count, float scale, nb::object row_scale, bool weighs) {
    require(!weighs || table_.has_shared, "weights need a shared part");
    require(weighs ? count == table_.shared.num_hashes : count >= 1 && count <= table_.latent_dim,
            "the private part has the wrong length");
    table_.own = values_of(values, bits, count, scale, row_scale, table_.num_embeddings);
    table_.has_private = true;
    table_.weighs = weighs;
  }

  void set_exact(nb::object ids, Stored values, int bits, nb::object row_scale) {
    require(table_.exact.count == 0, "exact rows are already there");  // a directory of them may have been made
    hfh::Exact exact;
    take_ids(exact, ids);
    exact.values = values_of(values, bits, table_.latent_dim, 1.0f, row_scale, exact.count);
    kept_.push_back(ids);
    table_.exact = exact;
  }

  void set_map(Matrix values, nb::object bias) {
    require(static_cast<int64_t>(values.shape(0)) == table_.latent_dim &&
                static_cast<int64_t>(values.shape(1)) == table_.embedding_dim,
            "the map has the wrong shape");
    keep(values);
    table_.map = values.data();
    if (bias.is_none()) return;
    const auto given = array_of<Floats>(bias, "the map's bias must be a contiguous float32 array");
    require(static_cast<int64_t>(given.size()) == table_.embedding_dim, "the map's bias has the wrong length");
    keep(given);
    table_.bias = given.data();
  }

  void set_residual(Matrix w1, Floats b1, Matrix w2, Floats b2) {
    const size_t dim = table_.embedding_dim, hidden = w1.shape(1);
    require(hidden >= 1 && w1.shape(0) == dim && b1.size() == hidden && w2.shape(0) == hidden && w2.shape(1) == dim &&
                b2.size() == dim,
            "the residual network does not fit the rows");
    keep(w1), keep(b1), keep(w2), keep(b2);
    table_.residual = {static_cast<int64_t>(hidden), w1.data(), b1.data(), w2.data(), b2.data()};
  }

  // The rows of ids as a new array, or None where the plain case does not apply: ids that are no contiguous int64 array,
  // another dtype than numpy's float32 or float16, or an id that is refused.
  nb::object lookup(nb::handle ids, nb::handle dtype, int num_threads) const {
    const bool half = dtype.ptr() == half_type();
    PyArrayObject* given = plain_array(ids, NPY_INT64);
    if (given == nullptr || PyArray_NDIM(given) > 30 || (!half && dtype.ptr() != float_type())) return nb::none();
    require_whole();
    nb::object rows = array_for(given, table_.embedding_dim, half);
    const auto* first = static_cast<const int64_t*>(PyArray_DATA(given));
    void* out = PyArray_DATA(reinterpret_cast<PyArrayObject*>(rows.ptr()));
    if (compute(first, PyArray_SIZE(given), out, half, num_threads) >= 0) return nb::none();
    return rows;
  }

  // Bags as a new array (bags, D), or None where the plain case does not apply: 1-D ids and offsets (of the bags' begins, from
  // 0, ascending) that are int64 arrays, weights that are None or a float32 array; or where an argument or id is refused.
  nb::object plain_bag(nb::handle ids, nb::handle offsets, nb::handle weights, int mode, nb::handle dtype, int num_threads) const {
    const bool half = dtype.ptr() == half_type();
    PyArrayObject *given = plain_array(ids, NPY_INT64), *begins = plain_array(offsets, NPY_INT64);
    if (given == nullptr || begins == nullptr || PyArray_NDIM(given) != 1 || PyArray_NDIM(begins) != 1 ||
        (!half && dtype.ptr() != float_type())) {
      return nb::none();
    }
    require_whole();
    require(mode >= 0 && mode <= 2, "mode is out of range");
    const int64_t count = PyArray_SIZE(given), bags = PyArray_SIZE(begins);
    const float* weight = nullptr;
    if (!weights.is_none()) {
      PyArrayObject* factors = plain_array(weights, NPY_FLOAT);
      if (factors == nullptr || PyArray_NDIM(factors) != 1 || PyArray_SIZE(factors) != count) return nb::none();
      weight = static_cast<const float*>(PyArray_DATA(factors));
    }
    const auto* begin = static_cast<const int64_t*>(PyArray_DATA(begins));
    std::vector<int64_t> bounds(begin, begin + bags);
    bounds.push_back(count);
    if (bags < 1 || bounds[0] != 0) return nb::none();
    bool ascending = true;
    for (int64_t b = 0; b < bags; ++b) ascending &= bounds[b] <= bounds[b + 1];
    if (!ascending) return nb::none();
    npy_intp shape[2] = {bags, table_.embedding_dim};
    nb::object rows = new_array(2, shape, half ? NPY_HALF : NPY_FLOAT);
    void* out = PyArray_DATA(reinterpret_cast<PyArrayObject*>(rows.ptr()));
    const auto* first = static_cast<const int64_t*>(PyArray_DATA(given));
    return compute_bags(first, bounds, weight, mode, out, half, num_threads) >= 0 ? nb::none() : rows;
  }

  // Rows into ``out`` (B, D), float32 or float16: -1, or the position of the first id that is refused.
  int64_t rows(Ids ids, nb::handle out, int num_threads) const {
    require_whole();
    require(aligned(ids), "ids must be aligned");
    bool half;
    void* to = output(out, static_cast<int64_t>(ids.size()), table_.embedding_dim, half);
    return compute(ids.data(), static_cast<int64_t>(ids.size()), to, half, num_threads);
  }

  // The products of rows first, first + 1, ... with hidden (B, D), (B, count) into ``out``: rows go no further than the cache.
  void products(int64_t first, Matrix hidden, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> out, int num_threads) const {
    require_whole();
    const int64_t tokens = hidden.shape(0), count = out.shape(1), dim = table_.embedding_dim;
    require(static_cast<int64_t>(hidden.shape(1)) == dim && static_cast<int64_t>(out.shape(0)) == tokens, "out or hidden has the wrong shape");
    require(aligned(hidden) && aligned(out), "arrays must be aligned");
    require(first >= 0 && first <= (int64_t{1} << 62) && (!table_.refuse_unknown || first + count <= table_.num_embeddings), "ids are outside the table");
    const float* states = hidden.data();
    float* to = out.data();
    const nb::gil_scoped_release release;
    std::call_once(prepared_, [this] { prepare(); });
    const int64_t threads = hfh::threads_for(count, num_threads), floats = kernels().scratch_floats(table_) + kBlockRows * dim;
    const std::unique_ptr<float[]> scratch(new float[threads * floats]);
    hfh::parallel(count, threads, [&](int64_t slot, int64_t begin, int64_t end) {
      float* const rows = scratch.get() + slot * floats;
      int64_t ids[kBlockRows];
      for (int64_t r = begin; r < end; r += kBlockRows) {
        const int64_t some = std::min(kBlockRows, end - r);
        for (int64_t k = 0; k < some; ++k) ids[k] = first + r + k;
        kernels().rows(table_, ids, some, rows, Out::kFloat, rows + kBlockRows * dim);
        kernels().products(rows, some, dim, states, tokens, to + r, count);
      }
    });
  }

  // Bags into ``out`` (bags, D); returns as rows.
  int64_t bag(Ids ids, Ids bounds, nb::object weights, int mode, nb::handle out, int num_threads) const {
    require(bounds.size() >= 1, "bounds need at least one place");
    require(mode >= 0 && mode <= 2, "mode is out of range");
    require_whole();
    const int64_t bags = static_cast<int64_t>(bounds.size()) - 1;
    require(aligned(ids) && aligned(bounds), "ids and bounds must be aligned");
    const std::vector<int64_t> own(bounds.data(), bounds.data() + bags + 1);  // nobody else can change this copy
    require(own[0] >= 0 && own[bags] <= static_cast<int64_t>(ids.size()), "bounds must lie within the ids");
    for (int64_t b = 0; b < bags; ++b) require(own[b] <= own[b + 1], "bounds must ascend");
    const float* weight = nullptr;
    Floats given;
    if (!weights.is_none()) {
      given = array_of<Floats>(weights, "weights must be a contiguous float32 array");
      require(given.size() == ids.size() && aligned(given), "weights must be as many as the ids");
      weight = given.data();
    }
    bool half;
    void* to = output(out, bags, table_.embedding_dim, half);
    return compute_bags(ids.data(), own, weight, mode, to, half, num_threads);
  }

 private:
  // Without a map the latent row is written where the row is wanted.
  void require_whole() const {
    require(table_.map != nullptr || table_.latent_dim == table_.embedding_dim, "rows of another length need a map");
  }

  // What is made at the first lookup, since it reads more than opening a file should.
  void prepare() const {
    if (table_.exact.count) make_directory(table_.exact, table_.num_embeddings, directory_);
    prepare_levels();
    on_lines(table_.map, table_.latent_dim * table_.embedding_dim);
    on_lines(table_.residual.w1, table_.residual.hidden * table_.embedding_dim);
    on_lines(table_.residual.w2, table_.residual.hidden * table_.embedding_dim);
  }

  // The first of some ids that is refused, or none.
  int64_t first_refused(const int64_t* ids, int64_t begin, int64_t end) const {
    const uint64_t limit = table_.refuse_unknown ? table_.num_embeddings : uint64_t{1} << 63;
    bool refused = false;
    for (int64_t i = begin; i < end; ++i) refused |= static_cast<uint64_t>(ids[i]) >= limit;
    if (!refused) return kNone;
    while (begin < end - 1 && static_cast<uint64_t>(ids[begin]) < limit) ++begin;
    return begin;
  }

  int64_t compute(const int64_t* ids, int64_t count, void* out, bool half, int num_threads) const {
    if (count < kKeepLockIds) return compute_unlocked(ids, count, out, half, num_threads);
    nb::gil_scoped_release release;
    return compute_unlocked(ids, count, out, half, num_threads);
  }

  int64_t compute_unlocked(const int64_t* ids, int64_t count, void* out, bool half, int num_threads) const {
    std::call_once(prepared_, [this] { prepare(); });
    const int64_t width = table_.embedding_dim * (half ? 2 : 4);
    const bool plain = table_.is_plain() && table_.shared.is_line_form();
    const int64_t threads = hfh::threads_for(count, num_threads), floats = plain ? 0 : kernels().scratch_floats(table_);
    const Aligned scratch = plain ? nullptr : aligned_floats(threads * floats);
    // So many rows leave the caches before anybody reads them: written past them, a line of memory is not read first.
    const bool streamed = plain && !half && count * width >= kStreamedBytes && width % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    const hfh::Out how = half ? hfh::Out::kHalf : streamed ? hfh::Out::kStreamed : hfh::Out::kFloat;
    std::atomic<int64_t> refused{kNone};
    hfh::parallel(count, threads, [&](int64_t slot, int64_t begin, int64_t end) {
      if (!admitted(ids, begin, end, refused)) return;
      kernels().rows(table_, ids + begin, end - begin, static_cast<char*>(out) + begin * width, how,
                     scratch.get() + slot * floats);
    });
    return refused == kNone ? -1 : refused.load();
  }

  int64_t compute_bags(const int64_t* ids, const std::vector<int64_t>& bounds, const float* weights, int mode, void* out,
                       bool half, int num_threads) const {
    const nb::gil_scoped_release release;
    const int64_t bags = static_cast<int64_t>(bounds.size()) - 1, members = bounds[bags] - bounds[0];
    const int64_t width = table_.embedding_dim * (half ? 2 : 4);
    std::call_once(prepared_, [this] { prepare(); });
    const int64_t threads = hfh::threads_for(members, num_threads), floats = kernels().scratch_floats(table_);
    const Aligned scratch = aligned_floats(threads * floats);
    std::atomic<int64_t> refused{kNone};
    hfh::parallel(bags, threads, [&](int64_t slot, int64_t begin, int64_t end) {
      if (!admitted(ids, bounds[begin], bounds[end], refused)) return;
      kernels().bags(table_, ids, bounds.data() + begin, end - begin, weights, static_cast<hfh::Mode>(mode),
                     static_cast<char*>(out) + begin * width, half, scratch.get() + slot * floats);
    });
    return refused == kNone ? -1 : refused.load();
  }

  // Whether none of some ids is refused; else the first one becomes ``refused``, if none before it is.
  bool admitted(const int64_t* ids, int64_t begin, int64_t end, std::atomic<int64_t>& refused) const {
    const int64_t mine = first_refused(ids, begin, end);
    for (int64_t known = refused; mine < known && !refused.compare_exchange_weak(known, mine);) {
    }
    return mine == kNone;
  }

  mutable std::vector<int64_t> directory_;
  mutable std::once_flag prepared_;
};

}  // namespace

void bind_tables(nb::module_& m) {
  if (_import_array() < 0) throw nb::python_error();
  nb::class_<Table>(m, "Table")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, bool, bool>(), "num_embeddings"_a, "embedding_dim"_a, "latent_dim"_a,
           "padding_id"_a, "refuse_unknown"_a, "zero_unknown"_a)
      .def("set_shared", &Table::set_shared, "key"_a, "slots"_a, "bits"_a, "dim"_a, "num_hashes"_a, "chunk_size"_a,
           "locality"_a, "lines"_a, "signs"_a, "pool"_a.noconvert(), "scale"_a)
      .def("set_scale", &Table::set_scale, "scale"_a)
      .def("set_bilinear", &Table::set_bilinear, "linear"_a.noconvert(), "quadratic"_a.noconvert())
      .def("set_mlp", &Table::set_mlp, "w1"_a.noconvert(), "b1"_a.noconvert(), "w2"_a.noconvert(), "b2"_a.noconvert())
      .def("set_private", &Table::set_private, "values"_a.noconvert(), "bits"_a, "count"_a, "scale"_a, "row_scale"_a.none(),
           "weighs"_a)
      .def("set_exact", &Table::set_exact, "ids"_a, "values"_a.noconvert(), "bits"_a, "row_scale"_a.none())
      .def("add_level", [](Table& t, int64_t count, Stored values, int bits, int64_t dim, float scale, nb::object map,
                           nb::object ids) { t.add_level(count, values, bits, dim, scale, map, ids); }, "count"_a, "values"_a.noconvert(), "bits"_a, "dim"_a, "scale"_a, "map"_a.none(),
           "ids"_a.none())
      .def("set_level_index", [](Table& t, int index, bool adds, nb::object codes, int code_bits) {
             t.set_level_index(index, adds, codes, code_bits); }, "index"_a, "adds"_a, "codes"_a.none(), "code_bits"_a)
      .def("set_map", &Table::set_map, "values"_a.noconvert(), "bias"_a.none())
      .def("set_residual", &Table::set_residual, "w1"_a.noconvert(), "b1"_a.noconvert(), "w2"_a.noconvert(),
           "b2"_a.noconvert())
      .def("lookup", &Table::lookup, "ids"_a.none(), "dtype"_a.none(), "num_threads"_a = 1)
      .def("products", &Table::products, "first"_a, "hidden"_a.noconvert(), "out"_a.noconvert(), "num_threads"_a)
      .def("rows", &Table::rows, "ids"_a.noconvert(), "out"_a, "num_threads"_a = 1)
      .def("plain_bag", &Table::plain_bag, "ids"_a.none(), "offsets"_a.none(), "weights"_a.none(), "mode"_a, "dtype"_a.none(),
           "num_threads"_a)
      .def("bag", &Table::bag, "ids"_a.noconvert(), "bounds"_a.noconvert(), "weights"_a.none(), "mode"_a, "out"_a,
           "num_threads"_a);
}

}  // namespace binding
}  // namespace hfh
