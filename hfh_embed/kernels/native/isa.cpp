// The kernels for one instruction set: compiled with its flags and with HFH_ISA as its namespace (portable, avx2 or avx512).

#include "rows.hpp"
#include "train.hpp"

namespace hfh {
namespace HFH_ISA {

static void addresses(const Shared& shared, int64_t id, Address* out) {
  Addresser addresser(shared);
  addresser.begin(id);
  for (int64_t c = 0; c < shared.num_chunks(); ++c) addresser.chunk(c, out + c * shared.num_hashes);
}

}  // namespace HFH_ISA

#define HFH_TEXT(x) #x
#define HFH_NAME(x) HFH_TEXT(x)
extern const Kernels HFH_KERNELS{HFH_NAME(HFH_ISA), HFH_ISA::scratch_floats, HFH_ISA::rows,         HFH_ISA::bags,
                                 HFH_ISA::addresses, HFH_ISA::locate,         HFH_ISA::sort_by_line, HFH_ISA::update,
                                 HFH_ISA::scatter,   HFH_ISA::pack};

}  // namespace hfh
