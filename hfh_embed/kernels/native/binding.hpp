// What both files of the Python side share: array types, the chosen kernels, checks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kernels.hpp"

namespace hfh {
namespace binding {

namespace nb = nanobind;

template <class T, int kDims>
using In = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Ids = In<int64_t, 1>;
using Stored = In<uint8_t, 1>;
using Floats = In<float, 1>;
using Matrix = In<float, 2>;

// The kernels to use: the best that the processor has, or fewer where HFH_SIMD says so.
const Kernels& kernels();

void bind_tables(nb::module_& m);
void bind_training(nb::module_& m);
void bind_coded(nb::module_& m);
void bind_text(nb::module_& m);
void bind_vocabulary(nb::module_& m);

inline void require(bool condition, const char* what) {
  if (!condition) throw nb::value_error(what);
}

// nanobind takes arrays at any address; numpy calls one without elements aligned wherever it lies.
template <class Array>
bool aligned(const Array& array) {
  return array.size() == 0 || reinterpret_cast<uintptr_t>(array.data()) % sizeof(*array.data()) == 0;
}

// Facts checked so that every address lies in the pool.
inline hfh::Shared shared_of(uint64_t key, int64_t slots, int bits, int64_t dim, int64_t num_hashes, int64_t chunk_size, int locality,
                      int64_t lines, bool signs) {
  require(bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16 || bits == 32, "bits must be 1, 2, 4, 8, 16 or 32");
  require(slots >= 1 && slots <= (int64_t{1} << 48), "slots are out of range");
  require(dim >= 1 && num_hashes >= 1 && chunk_size >= 1 && lines >= 1, "sizes must be at least 1");
  require(dim <= 65536 && num_hashes <= hfh::kMaxHashes && chunk_size <= 65536 && lines <= hfh::kMaxHashes,
          "sizes are out of range");
  require(locality >= 0 && locality <= 3, "locality is out of range");
  const auto form = static_cast<hfh::Locality>(locality);
  const int64_t line_slots = hfh::kLineBits / bits;
  switch (form) {
    case hfh::Locality::kFree:
    case hfh::Locality::kAligned:
      require(chunk_size <= slots, "a chunk is longer than the pool");
      break;
    case hfh::Locality::kLine:
      require(chunk_size <= line_slots && slots >= line_slots, "a chunk is longer than a line, or the pool shorter");
      break;
    case hfh::Locality::kWords:
      require((chunk_size & (chunk_size - 1)) == 0 && chunk_size <= 128, "words must have a power of two of slots, at most 128");
      require(num_hashes * chunk_size <= slots, "a line is longer than the pool");
      break;
  }
  return {key, slots, bits, dim, num_hashes, chunk_size, form, lines, signs};
}

}  // namespace binding
}  // namespace hfh
