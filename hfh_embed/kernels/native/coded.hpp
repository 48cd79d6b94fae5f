// Codes of a trained table: decoding its rows, and Viterbi's search for the codes of a row.
//
// A state of the trellis is a window of state_bits bits of a row's ring. Step t appends some bits, and the new state names the step's
// values in its books (Marcellin and Fischer, "Trellis coded quantization", IEEE Trans. Communications 1990; states that are windows
// of a bit string: Tseng et al., "QTIP", NeurIPS 2024). The ring has no beginning: a first pass over the seam chooses the state
// there, and a second one begins and ends with it. All states of a step are worked on at once, 16 to a vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "simd.hpp"
#include "trellis_plan.hpp"

#ifdef HFH_X86
#include <immintrin.h>
#endif

namespace hfh {

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef int16_t Products __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(32), aligned(2), may_alias));
constexpr int kLanes = 16;
constexpr int64_t kStageCodes = 256;

// Memory that begins at a cache line: a vector of it is then one line, not halves of two.
template <class T>
struct LineAllocator {
  typedef T value_type;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using LineVector = std::vector<T, LineAllocator<T>>;

constexpr int64_t kSlack = 16;  // bytes that may be read after a row's last
constexpr int64_t kWholeRingBits = 10;  // of a ring so short, all are tried

// Clang has no push_options; it keeps to the instructions that it is given.
#if defined(HFH_X86) && !defined(__clang__)
#define HFH_CODED_X86 1
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace coded_avx512 {
constexpr int kTall = 6, kWide = 4;
#define HFH_BODY_AVX512
#include "coded_body.hpp"
#include "coded_stages_body.hpp"
#undef HFH_BODY_AVX512
}  // namespace coded_avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace coded_avx2 {
constexpr int kTall = 6, kWide = 1;
#include "coded_body.hpp"
#include "coded_stages_body.hpp"
}  // namespace coded_avx2
#pragma GCC pop_options
#endif
namespace coded_portable {
constexpr int kTall = 2, kWide = 1;
#include "coded_body.hpp"
#include "coded_stages_body.hpp"
}  // namespace coded_portable

#ifdef HFH_CODED_X86
#define HFH_DISPATCH(simd, call)                          \
  ((simd) == hfh::Simd::kAvx512 ? hfh::coded_avx512::call \
                                : (simd) == hfh::Simd::kAvx2 ? hfh::coded_avx2::call : hfh::coded_portable::call)
#else
#define HFH_DISPATCH(simd, call) ((void)(simd), hfh::coded_portable::call)
#endif

// One thread's working memory for encoding.
class TrellisEncoder {
 public:
  TrellisEncoder(Simd simd, const TrellisPlan& plan, const float* values)
      : simd_(simd), plan_(plan), values_(values), states_(int64_t{1} << plan.state_bits), cost_(states_ + kLanes),
        next_(states_ + kLanes), path_(plan.steps()), place_(plan.steps() + 1) {
    for (int64_t t = 0; t < plan.steps(); ++t) place_[t + 1] = place_[t] + std::max<int64_t>(kLanes, states_ >> plan.bits[t]);
    from_.resize(place_.back());
    int64_t bits = 0;  // enough of them to forget where the first pass began
    while (seam_ < plan.steps() && bits < 2 * plan.state_bits) bits += plan.bits[seam_++];
    bits = 0;
    for (tail_ = plan.steps(); tail_ > 0 && bits < 2 * plan.state_bits;) bits += plan.bits[--tail_];
    if (plan.ring_bits <= kWholeRingBits) list_rings();
  }

  // The state after each step of the best ring for x (entries), of which entry e weighs weight[e].
  const std::vector<uint32_t>& encode(const float* x, const float* weight) {
    if (!rings_.empty()) return best_ring(x, weight);
    const int64_t steps = plan_.steps();
    std::fill(cost_.begin(), cost_.end(), 0.0f);
    for (int64_t t = tail_; t < steps; ++t) step(t, x, weight);
    for (int64_t t = 0; t < seam_; ++t) step(t, x, weight);
    const int64_t bits = plan_.state_bits, ring = plan_.ring_bits;  // a short ring does not forget where it began
    const int64_t tries = std::min<int64_t>(states_, ring < 2 * bits ? 64 : ring < 4 * bits ? 16 : 1);
    ends_.resize(tries);  // the best among the states that are equal modulo the tries
    for (int64_t s = 0; s < tries; ++s) ends_[s] = s;
    for (int64_t s = tries; s < states_; s += tries) {
      for (int64_t i = 0; i < tries; ++i) ends_[i] = cost_[s + i] < cost_[ends_[i]] ? s + i : ends_[i];
    }
    if (tries == 1) ends_[0] = least_state();
    size_t kept = 0;
    for (int64_t state : ends_) {  // most of them come from the same few states
      for (int64_t t = seam_ - 1; t >= 0; --t) state = previous(t, state);
      if (std::find(ends_.begin(), ends_.begin() + kept, state) == ends_.begin() + kept) ends_[kept++] = state;
    }
    ends_.resize(kept);
    float best = std::numeric_limits<float>::infinity();
    for (const int64_t seam : ends_) {
      std::fill(cost_.begin(), cost_.end(), std::numeric_limits<float>::max() / 4);
      cost_[seam] = 0;
      for (int64_t t = 0; t < steps; ++t) step(t, x, weight);
      if (!(cost_[seam] < best)) continue;
      best = cost_[seam];
      int64_t state = seam;
      for (int64_t t = steps - 1; t >= 0; --t) {
        path_[t] = static_cast<uint32_t>(state);
        state = previous(t, state);
      }
    }
    return path_;
  }

 private:
  // The values of all rings, where these are few.
  void list_rings() {
    const int64_t count = int64_t{1} << plan_.ring_bits;
    ring_count_ = std::max<int64_t>(count, kLanes);
    rings_.assign(plan_.num_entries() * ring_count_, 0.0f);
    for (int64_t t = 0, entry = 0; t < plan_.steps(); ++t) {
      for (int32_t v = 0; v < plan_.entries[t]; ++v, ++entry) {
        for (int64_t ring = 0; ring < count; ++ring) rings_[entry * ring_count_ + ring] = values_[plan_.book[entry] + state_of(ring, t)];
      }
    }
    cost_.resize(ring_count_);
  }

  // The state after step t of a ring that fits a word.
  int64_t state_of(int64_t ring, int64_t t) const {
    const int64_t place = 8 * plan_.byte[plan_.first[t]] + plan_.shift[plan_.first[t]];
    return (ring | ring << plan_.ring_bits) >> place & (states_ - 1);
  }

  const std::vector<uint32_t>& best_ring(const float* x, const float* weight) {
    for (int64_t ring = 0; ring < ring_count_; ++ring) cost_[ring] = ring >> plan_.ring_bits ? std::numeric_limits<float>::max() / 4 : 0;
    HFH_DISPATCH(simd_, ring_costs(rings_.data(), ring_count_, plan_.num_entries(), x, weight, cost_.data()));
    const int64_t ring = HFH_DISPATCH(simd_, least_place(cost_.data(), ring_count_));
    for (int64_t t = 0; t < plan_.steps(); ++t) path_[t] = static_cast<uint32_t>(state_of(ring, t));
    return path_;
  }

  void step(int64_t t, const float* x, const float* weight) {
    HFH_DISPATCH(simd_, viterbi_step(plan_, t, x, weight, values_, cost_.data(), next_.data(), from_.data() + place_[t]));
    cost_.swap(next_);
  }

  int64_t least_state() const {
    if (states_ % kLanes) return std::min_element(cost_.begin(), cost_.begin() + states_) - cost_.begin();
    return HFH_DISPATCH(simd_, least_place(cost_.data(), states_));
  }

  int64_t previous(int64_t t, int64_t state) const {
    const int64_t group = state >> plan_.bits[t];
    return (static_cast<int64_t>(from_[place_[t] + group]) << (plan_.state_bits - plan_.bits[t])) | group;
  }

  Simd simd_;
  const TrellisPlan& plan_;
  const float* values_;
  int64_t states_, ring_count_ = 0;
  LineVector<float> cost_, next_, rings_;
  LineVector<uint16_t> from_;
  std::vector<uint32_t> path_;
  std::vector<int64_t> place_, ends_;
  int64_t seam_ = 0, tail_ = 0;
};

}  // namespace hfh
