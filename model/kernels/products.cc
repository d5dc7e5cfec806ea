// The gradient of a weight on a CPU: x [M, K] transposed @ y [M, N], float32.
//
// Both are read along their rows, M of them, where a general product turns x first. A task is a
// block of the result that stays in the second cache; a few hundred rows at a time are laid out so
// that tiles are summed up in registers from the nearest one.

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Floats;
using native::kPanel;
using native::kTall;

constexpr int64_t kDepth = 256;    // rows at a time: a panel of them is 32 KiB
constexpr int64_t kMostRows = 192, kFewestRows = 24, kColumns = 512;  // of a block of the result

int64_t Pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

// `depth` rows of x, `count` columns of it, as tiles [depth, kTall] one after another.
void Tall(const float* x, int64_t row, int64_t depth, int64_t count, float* to) {
  for (int64_t m = 0; m < depth; ++m, x += row) {
    for (int64_t begin = 0; begin < count; begin += kTall) {
      float* at = to + begin * depth + m * kTall;
      if (count - begin >= kTall) {
        std::memcpy(at, x + begin, kTall * sizeof(float));
      } else {
        for (int64_t r = 0; r < kTall; ++r) at[r] = begin + r < count ? x[begin + r] : 0.0f;
      }
    }
  }
}

// `depth` rows of y, up to kPanel columns of it, as [depth, kPanel]; those behind are fetched.
void Panel(const float* y, int64_t row, int64_t depth, int64_t count, float* to) {
  for (int64_t m = 0; m < depth; ++m, y += row, to += kPanel) {
    if (count >= kPanel) {
      std::memcpy(to, y, kPanel * sizeof(float));
      for (int64_t c = kPanel; c < 2 * kPanel; c += 16) __builtin_prefetch(y + c, 0, 2);
    } else {
      for (int64_t c = 0; c < kPanel; ++c) to[c] = c < count ? y[c] : 0.0f;
    }
  }
}

ffi::Error Gradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> y,
                    ffi::ResultBuffer<ffi::F32> out) {
  const int64_t depth = x.dimensions()[0], rows = x.dimensions()[1], columns = y.dimensions()[1];
  const int64_t across = Pieces(columns, kColumns), threads = pool.num_threads();
  int64_t most = kMostRows;
  while (most > kFewestRows && Pieces(rows, most) * across < threads) most /= 2;
  // Blocks of nearly one height: threads end together.
  const int64_t high = Pieces(Pieces(rows, Pieces(rows, most)), kTall) * kTall;
  native::Share(pool, Pieces(rows, high) * across, [&](int64_t task) {
    const int64_t top = task / across * high, left = task % across * kColumns;
    const int64_t count = std::min(high, rows - top), width = std::min(kColumns, columns - left);
    const int64_t padded = Pieces(count, kTall) * kTall, wide = Pieces(width, kPanel) * kPanel;
    thread_local Floats tall, panel, sum;
    tall.resize(kDepth * padded);
    panel.resize(kDepth * kPanel);
    sum.assign(padded * wide, 0.0f);
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
      const int64_t many = std::min(kDepth, depth - begin);
      Tall(x.typed_data() + begin * rows + top, rows, many, count, tall.data());
      for (int64_t c = 0; c < wide; c += kPanel) {
        Panel(y.typed_data() + begin * columns + left + c, columns, many, width - c, panel.data());
        for (int64_t r = 0; r < padded; r += kTall) {
          native::Tile<kTall, true>(tall.data() + r * many, 1, kTall, panel.data(), kPanel, many,
                                    sum.data() + r * wide + c, wide);
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(out->typed_data() + (top + r) * columns + left, sum.data() + r * wide,
                  width * sizeof(float));
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_weight_gradient, Gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
