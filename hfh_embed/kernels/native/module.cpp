// The Python side of the compiled kernels: checks what it is given, lets go of the interpreter lock, calls fetch.hpp.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "coded_module.hpp"
#include "fetch.hpp"
#include "half.hpp"
#include "line.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Half = uint16_t;  // a float16, seen as its bits
template <class T>
using Places = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* what) {
  if (!condition) throw nb::value_error(what);
}

// The facts of one shared part and its pool, checked so that every address lies in the pool.
class SharedPart {
 public:
  SharedPart(uint64_t key, int64_t slots, int bits, int64_t dim, int64_t num_hashes, int64_t chunk_size, int locality,
             int64_t lines, bool signs)
      : shared_{key, slots, dim, num_hashes, chunk_size, static_cast<hfh::Locality>(locality), lines, signs}, bits_(bits) {
    require(bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16 || bits == 32, "bits must be 1, 2, 4, 8, 16 or 32");
    require(slots >= 1 && slots <= (int64_t{1} << 48), "slots are out of range");
    require(dim >= 1 && num_hashes >= 1 && chunk_size >= 1 && lines >= 1, "sizes must be at least 1");
    require(dim <= 65536 && num_hashes <= 64 && chunk_size <= 65536 && lines <= 64, "sizes are out of range");
    require(locality >= 0 && locality <= 3, "locality is out of range");
    const int64_t line_slots = hfh::kLineBits / bits, width = num_hashes * chunk_size;
    switch (shared_.locality) {
      case hfh::Locality::kFree:
      case hfh::Locality::kAligned:
        require(chunk_size <= slots, "a chunk is longer than the pool");
        break;
      case hfh::Locality::kLine:
        require(chunk_size <= line_slots && slots >= line_slots, "a chunk is longer than a line, or the pool shorter");
        break;
      case hfh::Locality::kWords:
        require((chunk_size & (chunk_size - 1)) == 0 && chunk_size <= 128, "words must have a power of two of slots, at most 128");
        require(width <= slots, "a line is longer than the pool");
        break;
    }
  }

  void sums(Bytes pool, float scale, Ids ids, Out out) const {
    check_pool(pool.size());
    require(out.shape(0) == ids.size() && static_cast<int64_t>(out.shape(1)) == shared_.dim, "out has the wrong shape");
    const int64_t count = ids.size();
    const uint8_t* bytes = pool.data();
    const int64_t* first = ids.data();
    float* rows = out.data();
    nb::gil_scoped_release release;
    sums_of(bytes, scale, first, count, rows);
  }

  // Rows of a table that has nothing but its shared part: -1, or the position of the first id that is refused.
  template <class T>
  int64_t rows(Bytes pool, float scale, Ids ids, nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu> out, int64_t num_embeddings,
               bool refuse_unknown, bool zero_unknown, int64_t padding_id, int num_threads) const {
    check_pool(pool.size());
    require(out.shape(0) == ids.size() && static_cast<int64_t>(out.shape(1)) == shared_.dim, "out has the wrong shape");
    const int64_t count = ids.size(), dim = shared_.dim;
    const uint8_t* bytes = pool.data();
    const int64_t* first = ids.data();
    T* to = out.data();
    nb::gil_scoped_release release;
    bool special = false;
    for (int64_t i = 0; i < count; ++i) {
      if (first[i] < 0 || (refuse_unknown && first[i] >= num_embeddings)) return i;
      special |= first[i] == padding_id || (zero_unknown && first[i] >= num_embeddings);
    }
    hfh::parallel(count, num_threads, [&](int64_t begin, int64_t end) {
      if constexpr (sizeof(T) == 4) {
        sums_of(bytes, scale, first + begin, end - begin, reinterpret_cast<float*>(to) + begin * dim);
      } else {  // through a block of floats that stays in the cache
        const int64_t block = std::max<int64_t>(1, 4096 / dim);
        std::vector<float> wide(block * dim);
        for (int64_t i = begin; i < end; i += block) {
          const int64_t some = std::min(block, end - i);
          sums_of(bytes, scale, first + i, some, wide.data());
          hfh::to_half(hfh::simd(), wide.data(), some * dim, reinterpret_cast<uint16_t*>(to) + i * dim);
        }
      }
    });
    for (int64_t i = 0; special && i < count; ++i) {
      if (first[i] == padding_id || (zero_unknown && first[i] >= num_embeddings)) std::memset(to + i * dim, 0, dim * sizeof(T));
    }
    return -1;
  }

  void sums_of(const uint8_t* bytes, float scale, const int64_t* first, int64_t count, float* rows) const {
    if (hfh::is_line_form(shared_, bits_)) {
      return shared_.num_hashes == 8 ? hfh::line_rows<8>(hfh::simd(), bytes, shared_, scale, first, count, rows)
                                     : hfh::line_rows<4>(hfh::simd(), bytes, shared_, scale, first, count, rows);
    }
    switch (bits_) {
      case 1: return run(hfh::Codes<1>{bytes}, scale, first, count, rows);
      case 2: return run(hfh::Codes<2>{bytes}, scale, first, count, rows);
      case 4: return run(hfh::Codes<4>{bytes}, scale, first, count, rows);
      case 8: return run(hfh::Codes<8>{bytes}, scale, first, count, rows);
      case 16: return run(hfh::Float16{reinterpret_cast<const uint16_t*>(bytes)}, scale, first, count, rows);
      default: return run(hfh::Float32{reinterpret_cast<const float*>(bytes)}, scale, first, count, rows);
    }
  }

  void addresses(Ids ids, Places<int64_t> start, Places<int64_t> rotation, Places<bool> negative) const {
    const size_t chunks = shared_.num_chunks(), hashes = shared_.num_hashes;
    const auto fits = [&](const auto& a) { return a.shape(0) == ids.size() && a.shape(1) == chunks && a.shape(2) == hashes; };
    require(fits(start) && fits(rotation) && fits(negative), "addresses have the wrong shape");
    const int64_t count = ids.size();
    nb::gil_scoped_release release;
    hfh::Addresser addresser(shared_, bits_);
    std::vector<hfh::Address> where(hashes);
    size_t place = 0;
    for (int64_t i = 0; i < count; ++i) {
      addresser.begin(ids.data()[i]);
      for (size_t c = 0; c < chunks; ++c) {
        addresser.chunk(c, where.data());
        for (const hfh::Address& a : where) {
          start.data()[place] = a.start;
          rotation.data()[place] = a.rotation;
          negative.data()[place++] = a.negative;
        }
      }
    }
  }

 private:
  template <class Pool>
  void run(Pool pool, float scale, const int64_t* ids, int64_t count, float* out) const {
    hfh::shared_sums(pool, shared_, bits_, scale, ids, count, out);
  }

  void check_pool(size_t nbytes) const {
    require(nbytes >= static_cast<size_t>((shared_.slots * bits_ + 7) / 8), "the pool has fewer bytes than its slots need");
  }

  hfh::Shared shared_;
  int bits_;
};

}  // namespace

NB_MODULE(_native, m) {
  m.attr("SIMD") = hfh::simd() == hfh::Simd::kAvx512 ? "avx512" : hfh::simd() == hfh::Simd::kAvx2 ? "avx2" : "portable";
  m.doc() = "Compiled kernels; hfh_embed.kernels.native_backend is their only user.";
  nb::class_<SharedPart>(m, "SharedPart")
      .def(nb::init<uint64_t, int64_t, int, int64_t, int64_t, int64_t, int, int64_t, bool>(), "key"_a, "slots"_a, "bits"_a,
           "dim"_a, "num_hashes"_a, "chunk_size"_a, "locality"_a, "lines"_a, "signs"_a)
      .def("sums", &SharedPart::sums, "pool"_a.noconvert(), "scale"_a, "ids"_a.noconvert(), "out"_a.noconvert())
      .def("rows", &SharedPart::rows<float>, "pool"_a.noconvert(), "scale"_a, "ids"_a.noconvert(), "out"_a.noconvert(),
           "num_embeddings"_a, "refuse_unknown"_a, "zero_unknown"_a, "padding_id"_a, "num_threads"_a)
      .def("rows_half", &SharedPart::rows<Half>, "pool"_a.noconvert(), "scale"_a, "ids"_a.noconvert(), "out"_a.noconvert(),
           "num_embeddings"_a, "refuse_unknown"_a, "zero_unknown"_a, "padding_id"_a, "num_threads"_a)
      .def("addresses", &SharedPart::addresses, "ids"_a.noconvert(), "start"_a.noconvert(), "rotation"_a.noconvert(),
           "negative"_a.noconvert());
  bind_coded(m);
}
