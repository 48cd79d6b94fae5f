// Large arrays whose memory is used again: a fresh one costs a page fault for every 4 KiB, more than the rows in it.
//
// At most kKept bytes wait to be used again; what an array holds goes back when the last reference to it is dropped.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hfh {

// Ask for huge pages behind memory that nothing was written to yet.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Memory that begins on a cache line, to be freed with std::free; much of it in huge pages where the system has them.
inline void* line_aligned(size_t bytes) {
  constexpr size_t kMuch = size_t{4} << 20, kHugePage = size_t{2} << 20;
  const size_t unit = bytes >= kMuch ? kHugePage : 64;
  void* data = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  if (data == nullptr) throw std::bad_alloc();
  if (bytes >= kMuch) prefer_huge_pages(data, bytes);
  return data;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Aligned = std::unique_ptr<float[], Free>;

inline Aligned aligned_floats(size_t count) { return Aligned(static_cast<float*>(line_aligned(count * sizeof(float) + 1))); }

class Recycled {
 public:
  static constexpr size_t kKept = size_t{256} << 20, kLeast = size_t{1} << 20;

  struct Block {
    void* data;
    size_t size;
  };

  // A block of at least ``size`` bytes, on a cache line; a waiting one that wastes less than half, or a new one.
  static Block take(size_t size) {
    Recycled& all = instance();
    {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      for (size_t i = 0; i < all.waiting_.size(); ++i) {
        const Block block = all.waiting_[i];
        if (block.size < size || block.size / 2 > size) continue;
        all.waiting_.erase(all.waiting_.begin() + static_cast<ptrdiff_t>(i));
        all.kept_ -= block.size;
        return block;
      }
    }
    const size_t whole = (size + 4095) / 4096 * 4096;
    return {line_aligned(whole), whole};
  }

  static void give_back(Block block) noexcept {
    Recycled& all = instance();
    {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      if (block.size >= kLeast && all.kept_ + block.size <= kKept && all.waiting_.size() < all.waiting_.capacity()) {
        all.waiting_.push_back(block);
        all.kept_ += block.size;
        return;
      }
    }
    std::free(block.data);
  }

 private:
  Recycled() { waiting_.reserve(64); }
  static Recycled& instance() {
    static Recycled* all = new Recycled;  // never destroyed: arrays may outlive everything else
    return *all;
  }

  std::mutex mutex_;
  std::vector<Block> waiting_;
  size_t kept_ = 0;
};

}  // namespace hfh
