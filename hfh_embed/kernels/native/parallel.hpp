// A range cut into equal parts, one a thread. Threads live for one call: nothing is left behind that a fork could break.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace hfh {

constexpr int64_t kLeastRowsAThread = 1024;  // fewer cost less than a thread's start

// How many threads share work that costs as much as ``rows`` rows.
inline int64_t parts(int64_t rows, int num_threads) {
  return std::max<int64_t>(1, std::min<int64_t>(num_threads, rows / kLeastRowsAThread));
}

// work(part, begin, end) for each of the parts of 0 ... count.
template <class Work>
void parallel(int64_t count, int64_t parts, const Work& work) {
  const auto run = [&](int64_t part) { work(part, count * part / parts, count * (part + 1) / parts); };
  if (parts == 1) return run(0);
  std::vector<std::thread> threads;
  int64_t started = 1;
  try {
    threads.reserve(parts - 1);
    for (; started < parts; ++started) threads.emplace_back(run, started);
  } catch (const std::exception&) {  // no more threads, or no memory for them: this one does the rest
  }
  run(0);
  for (; started < parts; ++started) run(started);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hfh
