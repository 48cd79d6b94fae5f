// Hash, fetch and sum for every locality and number of bits: what line.hpp does not have a form of its own for.
//
// Version 1 went id by id and value by value: 1.5 us for a row of 64 of four fetches. Version 2, here, makes the addresses
// of a few chunks ahead and prefetches them, then reads runs of neighbouring slots: 60 to 200 ns for the same.
#pragma once

#include "hashing.hpp"
#include "values.hpp"

namespace hfh {
namespace HFH_ISA {

constexpr int64_t kRingAddresses = 256;  // fetches whose memory is asked for before they are used

// The addresses of one id, chunk by chunk.
class Addresser {
 public:
  explicit Addresser(const Shared& shared) : shared_(shared), line_slots_(kLineBits / shared.bits) {}

  void begin(int64_t id) {
    state_ = id_state(shared_.key, id);
    if (shared_.locality == Locality::kLine) {
      for (int64_t k = 0; k < shared_.lines; ++k) lines_[k] = below(draw(state_, k), shared_.slots / line_slots_);
    }
  }

  // Into ``out``, num_hashes places.
  void chunk(int64_t c, Address* out) const {
    const int64_t hashes = shared_.num_hashes, size = shared_.chunk_size;
    switch (shared_.locality) {
      case Locality::kFree:
      case Locality::kAligned: {
        const bool aligned = shared_.locality == Locality::kAligned;
        const uint64_t starts = aligned ? shared_.slots / size : shared_.slots - size + 1, step = aligned ? size : 1;
        uint64_t draws[kMaxHashes];
        for (int64_t u = 0; u < hashes; ++u) draws[u] = draw(state_, c * hashes + u);
        for (int64_t u = 0; u < hashes; ++u) {
          out[u] = {static_cast<int64_t>(below(draws[u], starts) * step), 0, shared_.signs && (draws[u] & 1)};
        }
        break;
      }
      case Locality::kLine:
        for (int64_t u = 0; u < hashes; ++u) {
          const int64_t n = c * hashes + u;
          const uint64_t d = draw(state_, n + shared_.lines);
          const int64_t within = below(d, line_slots_ - size + 1);
          out[u] = {static_cast<int64_t>(lines_[n % shared_.lines]) * line_slots_ + within, 0, shared_.signs && (d & 1)};
        }
        break;
      case Locality::kWords: {
        const int64_t first = c * (1 + (hashes + 7) / 8);
        const int64_t line = below(draw(state_, first), shared_.slots / (hashes * size)) * (hashes * size);
        uint64_t fields = 0;
        for (int64_t u = 0; u < hashes; ++u) {
          if (u % 8 == 0) fields = draw(state_, first + 1 + u / 8);
          const uint64_t field = (fields >> (u % 8 * 8)) & 0xFF;
          out[u] = {line + u * size, static_cast<int32_t>(field & (size - 1)), shared_.signs && (field >> 7)};
        }
        break;
      }
    }
  }

 private:
  const Shared& shared_;
  int64_t line_slots_;
  uint64_t lines_[kMaxHashes];
  uint64_t state_ = 0;
};

// The fetches of many ids in order, chunk by chunk, addressed and prefetched ahead of being read.
class FetchStream {
 public:
  FetchStream(const Shared& shared, Bytes pool, const int64_t* ids, int64_t count)
      : shared_(shared), pool_(pool), ids_(ids), chunks_(shared.num_chunks()), total_(count * chunks_),
        addresser_(shared) {
    while (2 * (mask_ + 1) * shared.num_hashes <= kRingAddresses) mask_ = 2 * mask_ + 1;
    while (next_ < least(mask_, total_)) look_ahead();
  }

  // The next row's sums of few-bit levels times ``scale``, or of floats.
  void take_sums(float scale, float* row) {
    const int64_t hashes = shared_.num_hashes;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Address* where = next_chunk();
      const int64_t first = c * shared_.chunk_size, used = least(shared_.chunk_size, shared_.dim - first);
      for (int64_t part = 0; part < used; part += kPart) {
        const int64_t entries = least(kPart, used - part);
        float* to = row + first + part;
        if (shared_.bits <= 8) {
          alignas(64) int32_t sums[kPart + kLanes];
          std::memset(sums, 0, static_cast<size_t>(entries + kLanes) * 4);
          for (int64_t u = 0; u < hashes; ++u) {
            runs(where[u], part, entries, [&](int64_t at, int64_t slot, int64_t length) {
              add_levels(pool_, shared_.bits, slot, length, where[u].negative ? -1 : 1, sums + at);
            });
          }
          for (int64_t j = 0; j < entries; ++j) to[j] = static_cast<float>(sums[j]) * scale + 0.0f;
        } else {
          alignas(64) float sums[kPart];
          std::memset(sums, 0, static_cast<size_t>(entries) * 4);
          for (int64_t u = 0; u < hashes; ++u) {
            runs(where[u], part, entries, [&](int64_t at, int64_t slot, int64_t length) {
              add_values(pool_, shared_.bits, slot, length, where[u].negative ? -1.0f : 1.0f, sums + at);
            });
          }
          for (int64_t j = 0; j < entries; ++j) to[j] = sums[j] * scale + 0.0f;
        }
      }
    }
  }

  // The next row's values behind every entry, (U, dim): levels or floats, signed, times the weight of their hash function.
  void take_values(const float* weights, float* values) {
    for (int64_t c = 0; c < chunks_; ++c) {
      const Address* where = next_chunk();
      const int64_t first = c * shared_.chunk_size, used = least(shared_.chunk_size, shared_.dim - first);
      for (int64_t u = 0; u < shared_.num_hashes; ++u) {
        float* to = values + u * shared_.dim + first;
        const float weight = (weights ? weights[u] : 1.0f) * (where[u].negative ? -1.0f : 1.0f);
        runs(where[u], 0, used, [&](int64_t at, int64_t slot, int64_t length) {
          set_values(pool_, shared_.bits, slot, length, weight, to + at);
        });
      }
    }
  }

 private:
  static constexpr int64_t kPart = 512;  // entries summed at once, on the stack

  // use(entry, first slot, length) for the neighbouring slots that entries part ... part + count of a chunk read.
  template <class Use>
  void runs(const Address& where, int64_t part, int64_t count, const Use& use) const {
    const int64_t size = shared_.chunk_size, from = where.rotation + part;
    const int64_t wraps = from >= size ? 0 : least(count, size - from);
    if (wraps > 0) use(0, where.start + from, wraps);
    if (wraps < count) use(wraps, where.start + (from + wraps) % size, count - wraps);
  }

  void look_ahead() {
    if (next_chunk_ == 0) addresser_.begin(ids_[next_id_]);
    Address* where = ring_ + (next_++ & mask_) * shared_.num_hashes;
    addresser_.chunk(next_chunk_, where);
    if (++next_chunk_ == chunks_) next_chunk_ = 0, ++next_id_;
    const int64_t run_bytes = (shared_.chunk_size * shared_.bits + 7) / 8;
    for (int64_t u = 0; u < shared_.num_hashes; ++u) {
      const uint8_t* from = pool_.data + where[u].start * shared_.bits / 8;
      for (int64_t b = 0; b < least(run_bytes, 512); b += 64) prefetch(from + b);
      prefetch(from + run_bytes);
    }
  }

  const Address* next_chunk() {
    if (next_ < total_) look_ahead();
    return ring_ + (taken_++ & mask_) * shared_.num_hashes;
  }

  const Shared& shared_;
  const Bytes pool_;
  const int64_t* ids_;
  const int64_t chunks_, total_;
  Addresser addresser_;
  int64_t mask_ = 1;  // of places in the ring, a chunk each; all but one hold chunks to come
  int64_t next_ = 0, next_chunk_ = 0, next_id_ = 0, taken_ = 0;
  Address ring_[kRingAddresses];
};

}  // namespace HFH_ISA
}  // namespace hfh
