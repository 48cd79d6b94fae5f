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

// Four rows at a time, so that sums need not wait for one another.
static void products(const float* rows, int64_t count, int64_t dim, const float* hidden, int64_t tokens, float* out, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t, hidden += dim, out += stride) {
    for (int64_t r = 0; r < count; r += 4) {
      const float* row[4];
      for (int64_t k = 0; k < 4; ++k) row[k] = rows + least(r + k, count - 1) * dim;
      Vec sums[4] = {};
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) {
        const Vec h = load(hidden + d);
        for (int k = 0; k < 4; ++k) sums[k] = multiply_add(load(row[k] + d), h, sums[k]);
      }
      for (int64_t k = 0; k < least(4, count - r); ++k) {
        float sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += sums[k][lane];
        for (int64_t rest = d; rest < dim; ++rest) sum += row[k][rest] * hidden[rest];
        out[r + k] = sum;
      }
    }
  }
}

}  // namespace HFH_ISA

#define HFH_TEXT(x) #x
#define HFH_NAME(x) HFH_TEXT(x)
extern const Kernels HFH_KERNELS{HFH_NAME(HFH_ISA), HFH_ISA::scratch_floats, HFH_ISA::rows,         HFH_ISA::bags,
                                 HFH_ISA::addresses, HFH_ISA::locate,         HFH_ISA::sort_by_line, HFH_ISA::update,
                                 HFH_ISA::scatter,   HFH_ISA::pack,           HFH_ISA::to_half,      HFH_ISA::products,
                                 HFH_ISA::gather};

}  // namespace hfh
