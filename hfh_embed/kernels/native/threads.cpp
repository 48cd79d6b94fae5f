#include "threads.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace hfh {
namespace {

constexpr auto kPatience = std::chrono::microseconds(50);
const int64_t processors = std::thread::hardware_concurrency();

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Look until ``found`` or out of patience. On one processor nobody else could come meanwhile.
template <class Found>
bool look(const Found& found) {
  if (processors <= 1) return found();
  const auto until = std::chrono::steady_clock::now() + kPatience;
  do {
    for (int i = 0; i < 32; ++i) {
      if (found()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return found();
}

// One call. It lies on its caller's stack, who waits until nobody works on it.
struct Job {
  void (*run)(const void*, int64_t slot, int64_t piece);
  const void* context;
  int64_t pieces, wanted;  // pieces in all; helpers that are still wanted
  std::atomic<int64_t> taken{0}, front{0}, back{0}, working{0};
  int64_t slots = 1;
  std::mutex throwing;
  std::exception_ptr thrown;
  Job* after = nullptr;

  // The caller takes pieces from the front, helpers from the back: what lies side by side stays with one processor.
  void work(int64_t slot) noexcept {
    while (taken.fetch_add(1, std::memory_order_relaxed) < pieces) {
      const int64_t counted = (slot == 0 ? front : back).fetch_add(1, std::memory_order_relaxed);
      try {
        run(context, slot, slot == 0 ? counted : pieces - 1 - counted);
      } catch (...) {
        taken.store(pieces, std::memory_order_relaxed);
        const std::lock_guard<std::mutex> lock(throwing);
        if (!thrown) thrown = std::current_exception();
      }
    }
  }
};

class Crew {
 public:
  void share(Job& job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start(std::max(job.wanted, std::min(busy_ + job.wanted, processors - 1)));
      job.wanted = std::min(job.wanted, started_);
      if (job.wanted == 0) return job.work(0);
      *last_ = &job;
      last_ = &job.after;
      posted_.fetch_add(1, std::memory_order_release);
      for (int64_t k = std::min(job.wanted, asleep_); k > 0; --k) wake_.notify_one();
    }
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    if (job.wanted) leave(job);
    const auto finished = [&] { return job.working.load(std::memory_order_acquire) == 0; };
    if (finished()) return;
    lock.unlock();
    if (look(finished)) return;
    lock.lock();
    done_.wait(lock, finished);
  }

 private:
  void start(int64_t wanted) {
    if (started_ >= std::min(wanted, kMostThreads)) return;
    sigset_t all, before;  // signals are for the threads of the program
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; started_ < std::min(wanted, kMostThreads); ++started_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {  // no more threads: those that are there do the work
    } catch (const std::bad_alloc&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Nobody else is to begin with this job.
  void leave(Job& job) {
    Job** at = &first_;
    while (*at != &job) at = &(*at)->after;
    *at = job.after;
    if (last_ == &job.after) last_ = at;
    job.wanted = 0;
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (!first_) {
        const uint64_t seen = posted_.load(std::memory_order_relaxed);
        lock.unlock();
        look([&] { return posted_.load(std::memory_order_acquire) != seen; });
        lock.lock();
        ++asleep_;
        wake_.wait(lock, [&] { return first_ != nullptr; });
        --asleep_;
      }
      Job& job = *first_;
      const int64_t slot = job.slots++;
      job.working.fetch_add(1, std::memory_order_relaxed);
      ++busy_;
      if (--job.wanted == 0) {
        first_ = job.after;
        if (last_ == &job.after) last_ = &first_;
      }
      lock.unlock();
      job.work(slot);
      lock.lock();
      --busy_;
      if (job.working.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> posted_{0};
  Job* first_ = nullptr;  // jobs that want helpers, in the order of their calls
  Job** last_ = &first_;
  int64_t started_ = 0, asleep_ = 0, busy_ = 0;
};

// Never destroyed, since its threads go on until the process ends; made anew in the child of a fork, where they do not exist.
alignas(Crew) unsigned char storage[sizeof(Crew)];

void make() { new (storage) Crew; }

const bool made = [] {
  make();
  return pthread_atfork(nullptr, nullptr, make) == 0;
}();

}  // namespace

void share(int64_t pieces, int64_t threads, void (*run)(const void*, int64_t, int64_t), const void* context) {
  Job job;
  job.run = run, job.context = context, job.pieces = pieces, job.wanted = std::min(threads, pieces) - 1;
  if (job.wanted <= 0 || !made) {
    job.work(0);
  } else {
    std::launder(reinterpret_cast<Crew*>(storage))->share(job);
  }
  if (job.thrown) std::rethrow_exception(job.thrown);
}

}  // namespace hfh
