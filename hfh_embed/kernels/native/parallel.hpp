// A range cut into equal pieces that threads share. The pieces depend on the range and the number of threads alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "threads.hpp"

namespace hfh {

constexpr int64_t kLeastRowsAThread = 1024;  // fewer cost less than to wake a thread
constexpr int64_t kPiecesAThread = 4;

// How many threads share work that costs as much as ``rows`` rows.
inline int64_t threads_for(int64_t rows, int num_threads) {
  return std::max<int64_t>(1, std::min({static_cast<int64_t>(num_threads), rows / kLeastRowsAThread, kMostThreads}));
}

// work(slot, begin, end) for pieces of 0 ... count; ``slot`` is below ``threads``, for what a thread has of its own.
template <class Work>
void parallel(int64_t count, int64_t threads, const Work& work) {
  if (threads <= 1) return work(0, 0, count);
  struct Cut {
    int64_t count, pieces;
    const Work& work;
  } const cut{count, std::min(count, threads * kPiecesAThread), work};
  share(
      cut.pieces, threads,
      [](const void* context, int64_t slot, int64_t piece) {
        const Cut& cut = *static_cast<const Cut*>(context);
        cut.work(slot, cut.count * piece / cut.pieces, cut.count * (piece + 1) / cut.pieces);
      },
      &cut);
}

}  // namespace hfh
