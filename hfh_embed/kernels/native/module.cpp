// The extension module: chooses the kernels, and hands out what is not a class of its own.

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "binding.hpp"

using namespace nanobind::literals;
using namespace hfh::binding;

namespace {

template <class T>
using Places = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void addresses(uint64_t key, int64_t slots, int bits, int64_t dim, int64_t num_hashes, int64_t chunk_size, int locality,
               int64_t lines, bool signs, Ids ids, Places<int64_t> start, Places<int64_t> rotation, Places<bool> negative) {
  const hfh::Shared shared = shared_of(key, slots, bits, dim, num_hashes, chunk_size, locality, lines, signs);
  const size_t chunks = shared.num_chunks(), hashes = num_hashes;
  const auto fits = [&](const auto& a) { return a.shape(0) == ids.size() && a.shape(1) == chunks && a.shape(2) == hashes; };
  require(fits(start) && fits(rotation) && fits(negative), "addresses have the wrong shape");
  require(aligned(ids) && aligned(start) && aligned(rotation), "ids and addresses must be aligned");
  std::vector<hfh::Address> where(chunks * hashes);
  for (size_t i = 0; i < ids.size(); ++i) {
    kernels().addresses(shared, ids.data()[i], where.data());
    for (size_t k = 0; k < where.size(); ++k) {
      start.data()[i * where.size() + k] = where[k].start;
      rotation.data()[i * where.size() + k] = where[k].rotation;
      negative.data()[i * where.size() + k] = where[k].negative;
    }
  }
}

// Rows of an uncompressed (N, D) table into ``out`` (B, D).
void gather(Matrix table, Ids ids, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
  require(out.shape(0) == ids.size() && out.shape(1) == table.shape(1), "out has the wrong shape");
  require(aligned(table) && aligned(ids) && aligned(out), "arrays must be aligned");
  const std::vector<int64_t> own(ids.data(), ids.data() + ids.size());
  for (const int64_t id : own) require(static_cast<uint64_t>(id) < table.shape(0), "an id is outside the table");
  kernels().gather(table.data(), static_cast<int64_t>(table.shape(1)), own.data(), static_cast<int64_t>(own.size()), out.data());
}

// Set bits of a word; the plain build has no instruction for it.
int64_t ones(uint64_t word) {
  word -= word >> 1 & 0x5555555555555555;
  word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
  return static_cast<int64_t>((word + (word >> 4) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

// The place of each id among those whose bit is set, ``count`` for the others; ``before`` counts blocks of 64. Returns -1, or the
// position of the first id that is negative or, with ``refuses``, outside the table.
int64_t kept_places(Stored bits, Ids before, int64_t num_embeddings, int64_t count, bool refuses, Ids ids,
                    nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> places) {
  const int64_t bytes = static_cast<int64_t>(bits.size()), total = static_cast<int64_t>(ids.size());
  require(num_embeddings >= 1 && (num_embeddings + 7) / 8 <= bytes, "there are fewer bits than ids");
  require((num_embeddings + 63) / 64 <= static_cast<int64_t>(before.size()), "there are fewer counts than blocks");
  require(places.size() == ids.size(), "places have the wrong length");
  require(aligned(before) && aligned(ids) && aligned(places), "arrays must be aligned");
  const uint64_t n = static_cast<uint64_t>(num_embeddings);
  constexpr int64_t kAhead = 16;
  nb::gil_scoped_release others_may_run;
  for (int64_t i = 0; i < total; ++i) {
    if (i + kAhead < total) {
      const uint64_t next = static_cast<uint64_t>(ids.data()[i + kAhead]);
      if (next < n) {
        __builtin_prefetch(bits.data() + next / 8);
        __builtin_prefetch(before.data() + next / 64);
      }
    }
    const int64_t id = ids.data()[i];
    if (id < 0 || (refuses && id >= num_embeddings)) return i;
    int64_t place = count;
    if (id < num_embeddings) {
      const int64_t first = id / 64 * 8;
      uint64_t word = 0;
      if (first + 8 <= bytes) {
        std::memcpy(&word, bits.data() + first, 8);
      } else {
        std::memcpy(&word, bits.data() + first, static_cast<size_t>(bytes - first));
      }
      if (word >> (id % 64) & 1) place = before.data()[id / 64] + ones(word & ((uint64_t{1} << (id % 64)) - 1));
    }
    places.data()[i] = place >= 0 && place < count ? place : count;
  }
  return -1;
}

}  // namespace

const hfh::Kernels& hfh::binding::kernels() {
  static const hfh::Kernels& chosen = []() -> const hfh::Kernels& {
#ifdef HFH_X86
    const char* wanted = std::getenv("HFH_SIMD");
    const std::string name = wanted ? wanted : "";
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && name != "portable" && name != "avx2") return hfh::kAvx512;
    if (avx2 && name != "portable") return hfh::kAvx2;
#endif
    return hfh::kPortable;
  }();
  return chosen;
}

NB_MODULE(_native, m) {
  m.doc() = "Compiled kernels; hfh_embed.kernels.native_backend is their only user.";
  nb::set_leak_warnings(false);  // what lives until the interpreter ends is no leak
  m.attr("SIMD") = kernels().name;
  m.def("addresses", &addresses, "key"_a, "slots"_a, "bits"_a, "dim"_a, "num_hashes"_a, "chunk_size"_a, "locality"_a, "lines"_a,
        "signs"_a, "ids"_a.noconvert(), "start"_a.noconvert(), "rotation"_a.noconvert(), "negative"_a.noconvert());
  m.def("gather", &gather, "table"_a.noconvert(), "ids"_a.noconvert(), "out"_a.noconvert());
  m.def("kept_places", &kept_places, "bits"_a.noconvert(), "before"_a.noconvert(), "num_embeddings"_a, "count"_a, "refuses"_a,
        "ids"_a.noconvert(), "places"_a.noconvert());
  bind_tables(m);
  bind_training(m);
  bind_coded(m);
  bind_text(m);
  bind_vocabulary(m);
}
