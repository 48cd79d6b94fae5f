// What a trellis is (parts.TrellisSpec), laid out for the loops in coded_body.hpp.
#pragma once

#include <cstdint>
#include <vector>

namespace hfh {

struct TrellisPlan {
  int state_bits = 0, norm_bits = 0;
  int64_t ring_bits = 0;
  bool constant = false;
  std::vector<int32_t> bits, entries;  // of each step
  std::vector<int32_t> first;          // of each step: its first entry
  std::vector<int32_t> book;           // of each entry: where its values begin
  std::vector<int32_t> byte, shift;    // of each entry: where its window begins in the ring

  int64_t steps() const { return static_cast<int64_t>(bits.size()); }
  int64_t num_entries() const { return static_cast<int64_t>(book.size()); }
  int64_t row_bits() const { return norm_bits + ring_bits; }

  void add_run(int64_t steps, int32_t per_step, int32_t step_bits, int32_t first_book) {
    for (int64_t t = 0; t < steps; ++t) {
      bits.push_back(step_bits);
      entries.push_back(per_step);
      first.push_back(static_cast<int32_t>(book.size()));
      for (int32_t v = 0; v < per_step; ++v) book.push_back((first_book + v) << state_bits);
      ring_bits += step_bits;
    }
  }

  // Later steps lie before earlier ones, so that a window is read by one shift.
  void finish() {
    int64_t place = ring_bits;
    for (int64_t t = 0; t < steps(); ++t) {
      place -= bits[t];
      for (int32_t v = 0; v < entries[t]; ++v) {
        byte.push_back(static_cast<int32_t>(place >> 3));
        shift.push_back(static_cast<int32_t>(place & 7));
      }
    }
  }
};

}  // namespace hfh
