// The kernels for one instruction set: compiled with its flags and with HFH_ISA as its namespace (portable, avx2 or avx512).

#include "bags.hpp"
#include "train.hpp"

namespace hfh {
namespace HFH_ISA {

static void addresses(const Shared& shared, int64_t id, Address* out) {
  Addresser addresser(shared);
  addresser.begin(id);
  for (int64_t c = 0; c < shared.num_chunks(); ++c) addresser.chunk(c, out + c * shared.num_hashes);
}

// The peer of hfh bench: rows of an uncompressed table, each asked of the memory 16 rows before it is copied.
static void gather(const float* table, int64_t dim, const int64_t* ids, int64_t count, float* out) {
  constexpr int64_t kAhead = 16;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const float* soon = table + ids[i + kAhead] * dim;
      for (int64_t j = 0; j < dim; j += 16) prefetch(soon + j);
    }
    std::memcpy(out + i * dim, table + ids[i] * dim, static_cast<size_t>(dim) * 4);
  }
}

}  // namespace HFH_ISA

#define HFH_TEXT(x) #x
#define HFH_NAME(x) HFH_TEXT(x)
extern const Kernels HFH_KERNELS{HFH_NAME(HFH_ISA), HFH_ISA::scratch_floats, HFH_ISA::rows,         HFH_ISA::bags,
                                 HFH_ISA::addresses, HFH_ISA::locate,         HFH_ISA::sort_by_line, HFH_ISA::update,
                                 HFH_ISA::scatter,   HFH_ISA::pack,           HFH_ISA::to_half,      HFH_ISA::gather};

}  // namespace hfh
