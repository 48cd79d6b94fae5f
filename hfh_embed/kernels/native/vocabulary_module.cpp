// The Python side of a vocabulary's loss: checks what it is given and lets go of the interpreter lock.

#include "vocabulary_amx.hpp"

using namespace nanobind::literals;

namespace hfh {
namespace binding {
namespace {

#ifdef HFH_AMX

template <class T, int kDims>
using Result = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kMostRows = 4096, kMostEntries = int64_t{1} << 32;

// Hidden states (B, D) against a vocabulary's rows, a tile of them at a time. One thread at a time may use it.
class Vocabulary {
 public:
  explicit Vocabulary(Matrix hidden)
      : tiles_((require(hidden.shape(0) >= 1 && hidden.shape(1) >= 1, "there are no hidden states"),
                require(static_cast<int64_t>(hidden.size()) < kMostEntries, "there are too many hidden states"),
                require(aligned(hidden), "hidden states must be aligned"), require(tiles_allowed(), "this processor has no tiles"), hidden.data()),
               hidden.shape(0), hidden.shape(1)) {}

  void forward(Matrix rows, float scale, Floats bias, int num_threads) {
    check(rows, bias);
    nb::gil_scoped_release release;
    tiles_.forward(rows.data(), rows.shape(0), scale, bias.size() ? bias.data() : nullptr, num_threads);
  }

  void normalizers(Result<float, 1> out) const {
    require(static_cast<int64_t>(out.size()) == tiles_.tokens() && aligned(out), "out has the wrong shape");
    tiles_.normalizers(out.data());
  }

  void backward(Matrix rows, int64_t first, float scale, Floats bias, Floats normalizer, Floats counted, Floats spread, Floats hit, Ids targets,
                Result<float, 2> of_rows, Result<float, 1> of_bias, int num_threads) {
    check(rows, bias);
    const auto one_a_token = [&](const auto& array) { return static_cast<int64_t>(array.size()) == tiles_.tokens() && aligned(array); };
    require(one_a_token(normalizer) && one_a_token(counted) && one_a_token(spread) && one_a_token(hit) && one_a_token(targets),
            "arrays of tokens have the wrong shape");
    require(of_rows.shape(0) == rows.shape(0) && of_rows.shape(1) == rows.shape(1) && aligned(of_rows), "of_rows has the wrong shape");
    require(of_bias.size() == bias.size() && aligned(of_bias), "of_bias has the wrong shape");
    nb::gil_scoped_release release;
    const TokenGradients of{normalizer.data(), counted.data(), spread.data(), hit.data(), targets.data()};
    tiles_.backward(rows.data(), rows.shape(0), first, scale, bias.size() ? bias.data() : nullptr, of, of_rows.data(),
                    of_bias.size() ? of_bias.data() : nullptr, num_threads);
  }

  void hidden_gradients(Result<float, 2> out) const {
    require(static_cast<int64_t>(out.shape(0)) == tiles_.tokens() && static_cast<int64_t>(out.shape(1)) == tiles_.dim() && aligned(out),
            "out has the wrong shape");
    tiles_.hidden_gradients(out.data());
  }

 private:
  void check(const Matrix& rows, const Floats& bias) const {
    require(rows.shape(0) >= 1 && static_cast<int64_t>(rows.shape(0)) <= kMostRows, "a tile has 1 to 4096 rows");
    require(static_cast<int64_t>(rows.shape(1)) == tiles_.dim(), "rows and hidden states have different lengths");
    require(bias.size() == 0 || bias.size() == rows.shape(0), "the bias has the wrong shape");
    require(aligned(rows) && aligned(bias), "arrays must be aligned");
  }

  VocabularyTiles tiles_;
};

#endif

}  // namespace

void bind_vocabulary(nb::module_& m) {
#ifdef HFH_AMX
  m.attr("TILES") = tiles_allowed();
  nb::class_<Vocabulary>(m, "Vocabulary")
      .def(nb::init<Matrix>(), "hidden"_a.noconvert())
      .def("forward", &Vocabulary::forward, "rows"_a.noconvert(), "scale"_a, "bias"_a.noconvert(), "num_threads"_a)
      .def("normalizers", &Vocabulary::normalizers, "out"_a.noconvert())
      .def("backward", &Vocabulary::backward, "rows"_a.noconvert(), "first"_a, "scale"_a, "bias"_a.noconvert(), "normalizer"_a.noconvert(),
           "counted"_a.noconvert(), "spread"_a.noconvert(), "hit"_a.noconvert(), "targets"_a.noconvert(), "of_rows"_a.noconvert(),
           "of_bias"_a.noconvert(), "num_threads"_a)
      .def("hidden_gradients", &Vocabulary::hidden_gradients, "out"_a.noconvert());
#else
  m.attr("TILES") = false;
#endif
}

}  // namespace binding
}  // namespace hfh
