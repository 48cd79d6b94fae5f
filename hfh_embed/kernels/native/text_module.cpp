// Rows as JSON text. Shortest decimals cost some 20 ns a number; nine significant digits name a float32 as surely and cost a third.

#include <cmath>
#include <cstdio>
#include <cstring>

#include "binding.hpp"

using namespace nanobind::literals;

namespace hfh {
namespace binding {
namespace {

constexpr int64_t kMostText = 20;      // characters of a number with its comma
constexpr int64_t kKeepLock = 16'384;  // fewer numbers are written sooner than the interpreter lock is handed over

constexpr double kPowers[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14};

struct Pairs {
  char text[200];
  constexpr Pairs() : text{} {
    for (int i = 0; i < 100; ++i) text[2 * i] = static_cast<char>('0' + i / 10), text[2 * i + 1] = static_cast<char>('0' + i % 10);
  }
};
constexpr Pairs kPairs;

char* put(char* to, const char* text, size_t count) {
  std::memcpy(to, text, count);
  return to + count;
}

// One number: fixed notation from 1e-5 up to 1e9, trailing zeros left out; JSON has no word for what is not finite but null.
char* number(char* to, float value) {
  if (!std::isfinite(value)) return put(to, "null", 4);
  if (std::signbit(value)) *to++ = '-';
  const double size = std::fabs(static_cast<double>(value));
  if (size == 0.0) return put(to, "0.0", 3);
  if (size < 1e-5 || size >= 1e9) return to + std::snprintf(to, kMostText, "%.9g", size);
  int whole = 0;  // digits before the point; negative: zeros behind it
  if (size >= 1.0) {
    while (size >= kPowers[whole]) ++whole;
  } else {
    while (size * kPowers[1 - whole] < 1.0) --whole;
  }
  auto digits = static_cast<uint32_t>(size * kPowers[9 - whole] + 0.5);
  if (digits >= 1'000'000'000) digits /= 10, ++whole;
  char text[10];
  text[0] = static_cast<char>('0' + digits / 100'000'000);
  uint32_t rest = digits % 100'000'000;
  for (int pair = 3; pair >= 0; --pair, rest /= 100) std::memcpy(text + 1 + 2 * pair, kPairs.text + 2 * (rest % 100), 2);
  int used = 9;
  while (used > 1 && text[used - 1] == '0') --used;
  if (whole <= 0) {
    to = put(to, "0.0000000", static_cast<size_t>(2 - whole));
    return put(to, text, static_cast<size_t>(used));
  }
  to = put(to, text, static_cast<size_t>(whole));
  *to++ = '.';
  if (used <= whole) return put(to, "0", 1);
  return put(to, text + whole, static_cast<size_t>(used - whole));
}

// float32 rows (n, D) as a JSON list of lists.
nb::object json_rows(Matrix rows) {
  require(aligned(rows), "rows must be aligned");
  const int64_t count = rows.shape(0), dim = rows.shape(1);
  PyObject* made = PyBytes_FromStringAndSize(nullptr, 2 + count * (2 + dim * kMostText));
  if (made == nullptr) throw nb::python_error();
  char* const begin = PyBytes_AS_STRING(made);
  const auto write = [&] {
    const float* value = rows.data();
    char* to = begin;
    *to++ = '[';
    for (int64_t i = 0; i < count; ++i) {
      if (i) *to++ = ',';
      *to++ = '[';
      for (int64_t j = 0; j < dim; ++j) {
        if (j) *to++ = ',';
        to = number(to, *value++);
      }
      *to++ = ']';
    }
    *to++ = ']';
    return to;
  };
  char* end;
  if (count * dim < kKeepLock) {
    end = write();
  } else {
    const nb::gil_scoped_release release;
    end = write();
  }
  if (_PyBytes_Resize(&made, end - begin) < 0) throw nb::python_error();
  return nb::steal(made);
}

}  // namespace

void bind_text(nb::module_& m) { m.def("json_rows", &json_rows, "rows"_a.noconvert()); }

}  // namespace binding
}  // namespace hfh
