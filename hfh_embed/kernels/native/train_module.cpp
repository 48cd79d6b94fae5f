// The Python side of training: collects the gradients of rows and applies them to a pool.

#include <memory>
#include <mutex>
#include <vector>

#include "binding.hpp"
#include "parallel.hpp"
#include "recycled.hpp"

using namespace nanobind::literals;

namespace hfh {
namespace binding {
namespace {

template <class T>
using Changed = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A pool's values in training: float32, or bfloat16 as uint16.
struct Masters {
  void* data;
  bool narrow;
  int64_t count;

  explicit Masters(const nb::object& given) {
    Changed<float> wide;
    Changed<uint16_t> half;
    if (nb::try_cast(given, wide, false)) {
      require(aligned(wide), "values must be aligned");
      data = wide.data(), narrow = false, count = wide.size();
    } else {
      require(nb::try_cast(given, half, false), "values must be a writable contiguous array, float32 or uint16 for bfloat16");
      require(aligned(half), "values must be aligned");
      data = half.data(), narrow = true, count = half.size();
    }
  }
};

// The gradients of rows that one backward pass made, of all tables over one pool.
class Gradients {
 public:
  explicit Gradients(int64_t slots) : slots_(slots) { require(slots >= 1 && slots <= (int64_t{1} << 48), "slots are out of range"); }

  void add(uint64_t key, int64_t slots, int bits, int64_t dim, int64_t num_hashes, int64_t chunk_size, int locality, int64_t lines, bool signs,
           Ids ids, Matrix grads, float factor) {
    require(slots == slots_, "the pool has another size");
    const Shared shared = shared_of(key, slots, bits, dim, num_hashes, chunk_size, locality, lines, signs);
    require(grads.shape(0) == ids.size() && static_cast<int64_t>(grads.shape(1)) == dim, "gradients must be (ids, dim)");
    require(aligned(ids) && aligned(grads), "ids and gradients must be aligned");
    const int64_t units = static_cast<int64_t>(ids.size()) * shared.num_chunks();
    require(units_ + units < (int64_t{1} << 32), "too many ids for one step");
    const std::lock_guard<std::mutex> lock(mutex_);
    parts_.push_back({shared, ids, grads, factor});
    units_ += units;
    line_forms_ = line_forms_ && shared.is_line_form();
  }

  // Forget what was collected; working memory stays for the next step.
  void clear() {
    std::vector<Part> dropped;  // after the lock: what letting go of an array runs is Python's affair
    const std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(parts_);
    units_ = 0;
    line_forms_ = true;
  }

  int64_t count() const { return units_; }

  // Add to a gradient of the whole pool, (S,).
  void into(Changed<float> gradient, int num_threads) {
    check(gradient);
    float* to = gradient.data();
    nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (line_forms_) {
      Step how{};
      how.values = to;
      step(how, num_threads);
      return;
    }
    for (const Part& part : parts_) {
      kernels().scatter(part.shared, part.ids.data(), part.ids.size(), part.grads.data(), part.factor, to);
    }
  }

  // One step of gradient descent on the touched lines; returns by how much the sum of all squared values grew. ``seed`` is that of
  // the noise that bfloat16 values are rounded with.
  double sgd(nb::object values, Changed<uint8_t> packed, float rate, uint64_t seed, int num_threads) {
    Step how = on_lines(StepKind::kSgd, Masters(values), packed, rate, seed);
    nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return step(how, num_threads);
  }

  // One step of Adam (arXiv 1412.6980) on the touched lines, as torch's SparseAdam; ``rate`` holds the bias corrections.
  double adam(nb::object values, Changed<float> first, Changed<float> second, Changed<uint8_t> packed, float rate, float beta1,
              float beta2, float epsilon, uint64_t seed, int num_threads) {
    Step how = on_lines(StepKind::kAdam, Masters(values), packed, rate, seed);
    check(first), check(second);
    how.first_moment = first.data(), how.second_moment = second.data();
    how.beta1 = beta1, how.beta2 = beta2, how.epsilon = epsilon;
    nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return step(how, num_threads);
  }

 private:
  struct Part {
    Shared shared;
    Ids ids;
    Matrix grads;
    float factor;
  };

  void check(const Changed<float>& array) const {
    require(static_cast<int64_t>(array.size()) == slots_, "an array has not the pool's size");
    require(aligned(array), "an array is not aligned");
  }

  Step on_lines(StepKind kind, const Masters& values, const Changed<uint8_t>& packed, float rate, uint64_t seed) const {
    require(values.count == slots_, "the values have not the pool's size");
    require(line_forms_, "a step on lines needs tables of the line form: a 1-bit pool in words");
    require(static_cast<int64_t>(packed.size()) == slots_ / 8, "the packed signs have not the pool's size");
    Step how{};
    how.kind = kind, how.values = values.data, how.narrow = values.narrow, how.packed = packed.data();
    how.rate = rate, how.seed = seed;
    return how;
  }

  double step(Step how, int num_threads) {
    if (units_ == 0) return 0.0;
    if (units_ > room_) {
      order_.reset(new uint32_t[4 * units_]);
      located_.reset(new Unit[units_]);
      room_ = units_;
    }
    uint32_t* const line[2] = {order_.get(), order_.get() + units_};
    uint32_t* const unit[2] = {order_.get() + 2 * units_, order_.get() + 3 * units_};
    int64_t first = 0;
    for (const Part& part : parts_) {
      const int64_t chunks = part.shared.num_chunks(), count = part.ids.size();
      parallel(count, threads_for(count, num_threads), [&](int64_t, int64_t begin, int64_t end) {
        kernels().locate(part.shared, part.ids.data() + begin, end - begin, part.grads.data() + begin * part.shared.dim,
                         part.factor, line[0] + first + begin * chunks, located_.get() + first + begin * chunks);
      });
      first += count * chunks;
    }
    const int sorted = kernels().sort_by_line(units_, static_cast<uint32_t>(slots_ / kLineBits), line, unit);
    how.line = line[sorted], how.unit = unit[sorted], how.units = located_.get();
    // Blocks are the same for any number of threads, and no line is cut: every sum has one order.
    const int64_t blocks = (units_ + kBlockUnits - 1) / kBlockUnits;
    std::vector<int64_t> bounds;
    for (int64_t block = 0; block <= blocks; ++block) {
      int64_t at = std::min(block * kBlockUnits, units_);
      while (at > 0 && at < units_ && how.line[at] == how.line[at - 1]) ++at;
      bounds.push_back(at);
    }
    std::vector<double> grown(blocks);
    parallel(blocks, std::min(blocks, threads_for(units_, num_threads)), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        grown[block] = kernels().update(how, bounds[block], bounds[block + 1]);
      }
    });
    double total = 0.0;
    for (const double one : grown) total += one;
    return total;
  }

  static constexpr int64_t kBlockUnits = 4096;

  int64_t slots_, units_ = 0, room_ = 0;
  std::unique_ptr<uint32_t[]> order_;
  std::unique_ptr<Unit[]> located_;
  bool line_forms_ = true;
  std::vector<Part> parts_;
  std::mutex mutex_;  // a step works without the interpreter lock; taken after that is let go, so that neither waits for both
};

// An uninitialised (rows, width) array in recycled memory.
nb::ndarray<nb::numpy, float, nb::ndim<2>> recycled(size_t rows, size_t width) {
  require(width >= 1 && rows <= (size_t{1} << 46) / width, "the array is too large");
  const auto* block = new Recycled::Block(Recycled::take(std::max<size_t>(1, rows * width * sizeof(float))));
  nb::capsule owner(block, [](void* held) noexcept {
    auto* given = static_cast<Recycled::Block*>(held);
    Recycled::give_back(*given);
    delete given;
  });
  return {static_cast<float*>(block->data), {rows, width}, owner};
}

// Values as packed codes of ``bits`` bits.
void pack(nb::object values, int bits, float half_step, Changed<uint8_t> packed, int num_threads) {
  const Masters masters(values);
  require(bits == 1 || bits == 2 || bits == 4 || bits == 8, "bits must be 1, 2, 4 or 8");
  const int64_t count = masters.count, lines = count * bits / kLineBits;
  require(count * bits % kLineBits == 0 && static_cast<int64_t>(packed.size()) == 64 * lines, "a pool is whole lines");
  const auto* from = static_cast<const char*>(masters.data);
  uint8_t* to = packed.data();
  nb::gil_scoped_release release;
  parallel(lines, threads_for(lines, num_threads), [&](int64_t, int64_t begin, int64_t end) {
    const int64_t slots = kLineBits / bits, bytes = slots * (masters.narrow ? 2 : 4);
    kernels().pack(from + begin * bytes, masters.narrow, (end - begin) * slots, bits, half_step, to + begin * 64);
  });
}

void prefer_huge_pages(Changed<uint8_t> memory) { hfh::prefer_huge_pages(memory.data(), memory.size()); }

}  // namespace

void bind_training(nb::module_& m) {
  m.def("prefer_huge_pages", &prefer_huge_pages, "memory"_a.noconvert());
  m.def("recycled", &recycled, "rows"_a, "width"_a);
  m.def("pack", &pack, "values"_a, "bits"_a, "half_step"_a, "packed"_a.noconvert(), "num_threads"_a);
  nb::class_<Gradients>(m, "Gradients")
      .def(nb::init<int64_t>(), "slots"_a)
      .def("add", &Gradients::add, "key"_a, "slots"_a, "bits"_a, "dim"_a, "num_hashes"_a, "chunk_size"_a, "locality"_a, "lines"_a,
           "signs"_a, "ids"_a.noconvert(), "grads"_a.noconvert(), "factor"_a)
      .def("clear", &Gradients::clear)
      .def("__len__", &Gradients::count)
      .def("into", &Gradients::into, "gradient"_a.noconvert(), "num_threads"_a)
      .def("sgd", &Gradients::sgd, "values"_a, "packed"_a.noconvert(), "rate"_a, "seed"_a, "num_threads"_a)
      .def("adam", &Gradients::adam, "values"_a, "first_moment"_a.noconvert(), "second_moment"_a.noconvert(),
           "packed"_a.noconvert(), "rate"_a, "beta1"_a, "beta2"_a, "epsilon"_a, "seed"_a, "num_threads"_a);
}

}  // namespace binding
}  // namespace hfh
