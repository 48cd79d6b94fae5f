// A range cut into equal parts, one a thread. Threads live for one call: nothing is left behind that a fork could break.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace hfh {

constexpr int64_t kLeastRowsAThread = 512;  // fewer cost less than a thread's start

template <class Work>
void parallel(int64_t count, int num_threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(num_threads, count / kLeastRowsAThread));
  const auto bound = [&](int64_t part) { return count * part / parts; };
  std::vector<std::thread> threads;
  int64_t started = 1;
  try {
    threads.reserve(parts - 1);
    for (; started < parts; ++started) threads.emplace_back(work, bound(started), bound(started + 1));
  } catch (const std::system_error&) {  // no more threads to be had: this one does the rest
  }
  work(bound(0), bound(1));
  if (started < parts) work(bound(started), bound(parts));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hfh
