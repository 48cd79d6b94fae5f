// The path through a trellis that describes a row best: what `hfh compress` spends its time on.
//
// A state is the last L bits of the row's ring of bits. Step t appends k new ones, and the new state names the step's values in
// its books. Viterbi's algorithm finds the ring with the least weighted squared error (Marcellin and Fischer, "Trellis coded
// quantization", IEEE Trans. Communications 1990; states that are windows of a bit string: Tseng et al., "QTIP", NeurIPS 2024).
// The ring has no beginning: a first pass over the seam chooses the state there, a second one starts and ends with it.
// All states of a step are worked on at once, 16 to a vector; the compiler makes AVX-512, AVX2 and plain code of the one source.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HFH_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HFH_CLONES
#endif

namespace hfh {

// Steps over the entries of a row: step t covers `entries[t]` entries and appends `bits[t]` bits.
struct TrellisPlan {
  int state_bits;
  std::vector<int> bits, entries;
  std::vector<int64_t> book;  // of each entry: where its 2**state_bits values begin
  int64_t ring_bits = 0;

  int64_t steps() const { return static_cast<int64_t>(bits.size()); }
};

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4)));
typedef uint8_t Bytes16 __attribute__((vector_size(16), aligned(1)));
constexpr int kLanes = 16;

// The cheapest predecessor of each group of successors: best[m] and its leading bits from[m].
HFH_CLONES inline void cheapest(const float* cost, int state_bits, int bits, float* best, uint8_t* from) {
  const int64_t groups = int64_t{1} << (state_bits - bits), heads = int64_t{1} << bits;
  if (groups < kLanes) {
    for (int64_t m = 0; m < groups; ++m) {
      best[m] = cost[m];
      from[m] = 0;
      for (int64_t h = 1; h < heads; ++h) {
        if (cost[h * groups + m] < best[m]) best[m] = cost[h * groups + m], from[m] = static_cast<uint8_t>(h);
      }
    }
    return;
  }
  for (int64_t m = 0; m < groups; m += kLanes) {
    Floats least = *reinterpret_cast<const Floats*>(cost + m);
    Ints head = {};
    for (int64_t h = 1; h < heads; ++h) {
      const Floats other = *reinterpret_cast<const Floats*>(cost + h * groups + m);
      const Ints less = other < least;
      least = less ? other : least;
      head = less ? Ints{} + static_cast<int32_t>(h) : head;
    }
    *reinterpret_cast<Floats*>(best + m) = least;
    *reinterpret_cast<Bytes16*>(from + m) = __builtin_convertvector(head, Bytes16);
  }
}

// cost[s] = best[s >> bits] + sum over the step's entries of weight * (value**2 - 2 x value).
HFH_CLONES inline void extend(const float* best, int state_bits, int bits, int entries, const float* x, const float* weight,
                              const int64_t* book, const float* values, const float* squares, float* cost) {
  const int64_t states = int64_t{1} << state_bits;
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t groups = states >> bits;
  const Ints spread = lane >> bits;
  for (int64_t s = 0; s < states; s += kLanes) {
    Floats total;
    if (bits >= 4) {
      total = Floats{} + best[s >> bits];
    } else if (groups < kLanes) {
      for (int i = 0; i < kLanes; ++i) total[i] = best[(s + i) >> bits];
    } else {
      const int64_t first = s >> bits, base = std::min(first, groups - kLanes);
      total = __builtin_shuffle(*reinterpret_cast<const Floats*>(best + base), spread + static_cast<int32_t>(first - base));
    }
    for (int v = 0; v < entries; ++v) {
      const Floats value = *reinterpret_cast<const Floats*>(values + book[v] + s);
      const Floats square = *reinterpret_cast<const Floats*>(squares + book[v] + s);
      total += weight[v] * square + (-2 * weight[v] * x[v]) * value;
    }
    *reinterpret_cast<Floats*>(cost + s) = total;
  }
}

// One thread's working memory.
class TrellisEncoder {
 public:
  TrellisEncoder(const TrellisPlan& plan, const float* values, const float* squares)
      : plan_(plan), values_(values), squares_(squares), states_(int64_t{1} << plan.state_bits), cost_(states_ + kLanes),
        best_(states_ + kLanes), from_(plan.steps() * from_stride()), path_(plan.steps()), first_(plan.steps()) {
    int64_t entry = 0;
    for (int64_t t = 0; t < plan.steps(); ++t) first_[t] = entry, entry += plan.entries[t];
    while (seam_ < plan.steps()) {  // steps enough to forget where the first pass began
      seam_bits_ += plan.bits[seam_++];
      if (seam_bits_ >= 3 * plan.state_bits) break;
    }
    int64_t bits = 0;
    for (tail_ = plan.steps(); tail_ > 0 && bits < 3 * plan.state_bits;) bits += plan.bits[--tail_];
  }

  // The state after each step, in path()[t], of the best ring for x (entries) with these weights.
  const std::vector<uint32_t>& encode(const float* x, const float* weight) {
    const int64_t steps = plan_.steps();
    std::fill(cost_.begin(), cost_.end(), 0.0f);
    const int64_t before = steps - tail_;
    for (int64_t j = 0; j < before + seam_; ++j) step(tail_ + j < steps ? tail_ + j : tail_ + j - steps, j % steps, x, weight);
    int64_t state = std::min_element(cost_.begin(), cost_.begin() + states_) - cost_.begin();
    for (int64_t j = before + seam_ - 1; j >= before; --j) state = previous(tail_ + j < steps ? tail_ + j : tail_ + j - steps, j % steps, state);
    const int64_t seam = state;
    std::fill(cost_.begin(), cost_.end(), std::numeric_limits<float>::max() / 4);
    cost_[seam] = 0;
    for (int64_t t = 0; t < steps; ++t) step(t, t, x, weight);
    state = seam;
    for (int64_t t = steps - 1; t >= 0; --t) {
      path_[t] = static_cast<uint32_t>(state);
      state = previous(t, t, state);
    }
    return path_;
  }

 private:
  int64_t from_stride() const { return (int64_t{1} << plan_.state_bits) + kLanes; }

  void step(int64_t t, int64_t slot, const float* x, const float* weight) {
    cheapest(cost_.data(), plan_.state_bits, plan_.bits[t], best_.data(), from_.data() + slot * from_stride());
    extend(best_.data(), plan_.state_bits, plan_.bits[t], plan_.entries[t], x + first_[t], weight + first_[t],
           plan_.book.data() + first_[t], values_, squares_, cost_.data());
  }

  int64_t previous(int64_t t, int64_t slot, int64_t state) const {
    const int64_t group = state >> plan_.bits[t];
    return (static_cast<int64_t>(from_[slot * from_stride() + group]) << (plan_.state_bits - plan_.bits[t])) | group;
  }

  const TrellisPlan& plan_;
  const float* values_;
  const float* squares_;
  int64_t states_;
  std::vector<float> cost_, best_;
  std::vector<uint8_t> from_;
  std::vector<uint32_t> path_;
  std::vector<int64_t> first_;
  int64_t seam_ = 0, seam_bits_ = 0, tail_ = 0;
};

}  // namespace hfh
