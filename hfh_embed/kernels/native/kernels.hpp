// What a table consists of, as plain data, and the functions that every instruction set has of its own.
//
// isa.cpp is compiled once for each instruction set and fills one Kernels; module.cpp checks sizes, owns memory and picks.
#pragma once

#include <cstdint>

namespace hfh {

constexpr int64_t kLineBits = 512;
constexpr int64_t kMaxHashes = 64;
constexpr int kMaxLevels = 15;
constexpr int64_t kIndexBlock = 256;  // ids between two counts of each level

// Inlined even without optimisation: a copy compiled for a newer processor must never be the one that the linker keeps.
#define HFH_INLINE __attribute__((always_inline)) inline

enum class Locality : int { kFree = 0, kAligned = 1, kLine = 2, kWords = 3 };
enum class Reconstruction : int { kSum = 0, kBilinear = 1, kMlp = 2 };
enum class Out : int { kFloat = 0, kHalf = 1, kStreamed = 2 };  // float32, float16, float32 past the caches
enum class LevelIndex : int { kFirst = 0, kCodes = 1, kIds = 2 };
enum class Mode : int { kSum = 0, kMean = 1, kMax = 2 };

struct Shared {
  uint64_t key = 0;
  int64_t slots = 1;
  int bits = 1;
  int64_t dim = 1;
  int64_t num_hashes = 1;
  int64_t chunk_size = 1;
  Locality locality = Locality::kFree;
  int64_t lines = 1;
  bool signs = false;

  HFH_INLINE int64_t num_chunks() const { return (dim + chunk_size - 1) / chunk_size; }
  // A 1-bit pool in words that fill a 64-byte line, four, eight or sixteen of them: line.hpp's form.
  HFH_INLINE bool is_line_form() const {
    return bits == 1 && locality == Locality::kWords && (num_hashes == 4 || num_hashes == 8 || num_hashes == 16) &&
           num_hashes * chunk_size == kLineBits && slots / kLineBits < (int64_t{1} << 32);
  }
};

struct Address {
  int64_t start;
  int32_t rotation;
  bool negative;
};

// Stored bytes with their end, so that no window reads past it.
struct Bytes {
  const uint8_t* data = nullptr;
  int64_t size = 0;
};

// The function g: bilinear has linear (U,) and quadratic (U, U), the MLP w1 (U, hidden), b1, w2 and b2[0].
struct Network {
  Reconstruction kind = Reconstruction::kSum;
  int64_t hidden = 0;
  const float *w1 = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
};

// Rows of `count` values of `bits` bits: packed levels with a scale (one, or a float16 a row), or floats.
struct Values {
  Bytes bytes;
  int bits = 0;
  int64_t count = 0;
  float scale = 1.0f;
  const uint16_t* row_scale = nullptr;

  HFH_INLINE int64_t row_bytes() const { return (count * bits + 7) / 8; }
};

// Ids with rows of their own. directory[b] is the first place whose id is at least b << shift.
struct Exact {
  int64_t count = 0;
  const void* ids = nullptr;
  bool wide = false;  // int64 ids, else uint32
  const int64_t* directory = nullptr;
  int shift = 0;
  int64_t buckets = 0;
  Values values;
};

// Some ids with rows of their own, and the map (dim, latent_dim) to latent rows; null where rows are as wide.
struct Level {
  int64_t count = 0;
  Values values;
  const float* map = nullptr;
  Exact ids;  // where the index has ids
};

// before[block * count + level] is how many ids of the level lie before a block of kIndexBlock codes.
struct Levels {
  int count = 0;  // 0 until the index is there
  int64_t widest = 0;
  LevelIndex index = LevelIndex::kFirst;
  bool adds = false;
  Bytes codes;
  int code_bits = 1, first_code = 0;
  const int64_t* before = nullptr;
  Level each[kMaxLevels];
};

struct Residual {
  int64_t hidden = 0;
  const float *w1 = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
};

struct Table {
  int64_t num_embeddings, embedding_dim, latent_dim, padding_id;
  bool refuse_unknown, zero_unknown;
  bool has_shared = false, has_private = false, weighs = false;
  Shared shared{};
  Bytes pool;
  float scale = 1.0f;
  Network network;
  Values own;  // the private part
  Exact exact;
  Levels levels;
  const float* map = nullptr;   // (R, D)
  const float* bias = nullptr;  // (D,)
  Residual residual;

  // Rows that are nothing but their shared sum, so that they are written where they are wanted.
  HFH_INLINE bool is_plain() const {
    return has_shared && !has_private && exact.count == 0 && levels.count == 0 && map == nullptr && bias == nullptr && residual.hidden == 0 &&
           network.kind == Reconstruction::kSum && shared.dim == embedding_dim;
  }
};

// One chunk of one id that was looked up, with the gradient of its entries: a line of U words reads ``size`` = 512 / U slots.
struct Unit {
  uint64_t fields[2];  // a byte a word
  const float* gradient;
  float factor;
  int16_t used, size;
};

enum class StepKind : int { kGradient = 0, kSgd = 1, kAdam = 2 };

// What becomes of a pool's values by the gradients of sorted units.
struct Step {
  StepKind kind;
  const uint32_t *line, *unit;  // sorted by line
  const Unit* units;
  void* values;
  bool narrow;  // values are bfloat16, else float32
  float *first_moment, *second_moment;
  uint8_t* packed;  // the values' signs, kept true by steps; null for a gradient
  float rate, beta1, beta2, epsilon;
  uint64_t seed;  // of the noise that bfloat16 values are rounded with
};

constexpr int64_t kBlockRows = 32;  // rows that are finished together while they are in the cache

struct Kernels {
  const char* name;
  // Floats of working memory that rows and bags need.
  int64_t (*scratch_floats)(const Table&);
  // Rows of ids; every id was admitted before. Streamed ones need rows of whole cache lines that begin on one.
  void (*rows)(const Table&, const int64_t* ids, int64_t count, void* out, Out how, float* scratch);
  // One row for each bag ids[bounds[k] : bounds[k + 1]]; weights may be null.
  void (*bags)(const Table&, const int64_t* ids, const int64_t* bounds, int64_t bags, const float* weights, Mode mode, void* out,
               bool half, float* scratch);
  // The addresses of one id, (chunks, U).
  void (*addresses)(const Shared&, int64_t id, Address* out);
  // Training, see train.hpp.
  void (*locate)(const Shared&, const int64_t* ids, int64_t count, const float* grads, float factor, uint32_t* line, Unit* units);
  int (*sort_by_line)(int64_t count, uint32_t most_lines, uint32_t* const (&line)[2], uint32_t* const (&unit)[2]);
  double (*update)(const Step&, int64_t begin, int64_t end);
  void (*scatter)(const Shared&, const int64_t* ids, int64_t count, const float* grads, float factor, float* gradient);
  void (*pack)(const void* values, bool narrow, int64_t count, int bits, float half_step, uint8_t* bytes);
  void (*to_half)(const float* from, int64_t count, uint16_t* to);
  // out[t * stride + r] = rows (count, dim) times hidden (tokens, dim).
  void (*products)(const float* rows, int64_t count, int64_t dim, const float* hidden, int64_t tokens, float* out, int64_t stride);
  // Rows of an uncompressed table, for comparison.
  void (*gather)(const float* table, int64_t dim, const int64_t* ids, int64_t count, float* out);
};

extern const Kernels kPortable;
#ifdef HFH_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace hfh
