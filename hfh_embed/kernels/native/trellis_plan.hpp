// What a trellis is (parts.TrellisSpec), laid out for the loops in coded_body.hpp.
#pragma once

#include <algorithm>
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
  std::vector<int32_t> load;           // of each eight entries: the byte where the 64 bits begin that hold their windows,
  std::vector<int64_t> by;             // and of each entry how far these are shifted; filled up to whole sixteens
  bool grouped = true;                 // whether 64 bits are enough everywhere

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
    const int64_t last = num_entries() - 1;
    for (int64_t e = 0; e <= last; e += 8) {
      const int64_t begin = byte[std::min(e + 7, last)];
      load.push_back(static_cast<int32_t>(begin));
      for (int64_t i = e; i < e + 8; ++i) {
        const int64_t entry = std::min(i, last);
        by.push_back(8 * (byte[entry] - begin) + shift[entry]);
        grouped = grouped && by.back() + state_bits <= 64;
      }
    }
    load.push_back(load.back());
    by.insert(by.end(), 8, 0);
  }
};

}  // namespace hfh
