// Products of a training step on a CPU, float32: x [M, K] @ w, with w [K, N] or, turned, [N, K]; and
// the gradient of a weight, x [M, K] transposed @ y [M, N].
//
// Where a general product lays both sides out anew, these read activations as they lie: only w, the
// small side, is laid out in panels, and of a gradient what stays in the second cache. Tiles are
// summed up in registers from the nearest one.

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Floats;
using native::kPanel;
using native::kTall;

constexpr int64_t kDepth = 256;    // that is summed up at a time: a panel of it is 32 KiB
constexpr int64_t kMostRows = 192, kFewestRows = 24, kColumns = 512;  // of a block of the result
constexpr int64_t kSide = 12;       // panels beside each other, of a block of a product
constexpr int64_t kLaid = 1 << 20;  // numbers of w that are laid out at a time

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

// `depth` rows of w from `begin` on as [depth, kPanel]: columns of w, or, turned, rows of it.
void Lay(const float* w, int64_t row, bool turned, int64_t depth, int64_t count, float* to) {
  if (!turned) {
    for (int64_t k = 0; k < depth; ++k, w += row, to += kPanel) {
      for (int64_t c = 0; c < kPanel; ++c) to[c] = c < count ? w[c] : 0.0f;
    }
    return;
  }
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t k = 0; k < depth; k += kLine) {  // of each row a cache line at a time
    const int64_t line = std::min(kLine, depth - k);
    for (int64_t c = 0; c < kPanel; ++c) {
      const float* from = w + c * row + k;
      for (int64_t i = 0; i < line; ++i) to[(k + i) * kPanel + c] = c < count ? from[i] : 0.0f;
    }
  }
}

// out [rows, count] (+)= x [rows, depth] @ panel [depth, kPanel].
template <bool kAdd>
void Column(int64_t rows, const float* x, int64_t x_row, const float* panel, int64_t depth,
            int64_t count, float* out, int64_t out_row) {
  if (count >= kPanel) {
    native::Tiles<kTall, kAdd>(rows, x, x_row, 1, panel, kPanel, depth, out, out_row);
    return;
  }
  float part[kTall * kPanel];  // beside the last column there is no room for a whole panel
  for (; rows > 0; rows -= kTall, x += kTall * x_row, out += kTall * out_row) {
    const int64_t here = std::min<int64_t>(rows, kTall);
    native::Tiles<kTall, false>(here, x, x_row, 1, panel, kPanel, depth, part, kPanel);
    for (int64_t r = 0; r < here; ++r) {
      for (int64_t c = 0; c < count; ++c) {
        out[r * out_row + c] = part[r * kPanel + c] + (kAdd ? out[r * out_row + c] : 0.0f);
      }
    }
  }
}

ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> w,
                   ffi::ResultBuffer<ffi::F32> out, bool turned) {
  const int64_t rows = x.dimensions()[0], depth = x.dimensions()[1];
  const int64_t columns = w.dimensions()[turned ? 0 : 1], row = w.dimensions()[1];
  const int64_t blocks = std::max<int64_t>(1, Pieces(depth, kDepth));
  const int64_t deep = std::max<int64_t>(1, Pieces(depth, blocks));  // nearly equal ones
  const int64_t group = std::max<int64_t>(1, kLaid / (kPanel * std::max<int64_t>(1, depth)));
  int64_t most = kMostRows;
  while (most > kFewestRows && Pieces(rows, most) < 4 * pool.num_threads()) most /= 2;
  const int64_t high = Pieces(Pieces(rows, Pieces(rows, most)), kTall) * kTall;
  thread_local Floats own;
  for (int64_t side = 0; side < columns; side += group * kPanel) {
    const int64_t wide = std::min(columns - side, group * kPanel), panels = Pieces(wide, kPanel);
    own.resize(panels * depth * kPanel);
    float* laid = own.data();  // of each block of the depth its panels
    const auto place = [=](int64_t begin, int64_t p) {
      return laid + (begin * panels + p * std::min(deep, depth - begin)) * kPanel;
    };
    native::Share(pool, panels, [&](int64_t p) {
      const int64_t left = side + p * kPanel;
      for (int64_t begin = 0; begin < depth; begin += deep) {
        const float* from = w.typed_data() + (turned ? left * row + begin : begin * row + left);
        Lay(from, row, turned, std::min(deep, depth - begin), columns - left, place(begin, p));
      }
    });
    native::Share(pool, Pieces(rows, high), [&](int64_t task) {
      const int64_t top = task * high, count = std::min(high, rows - top);
      float* to = out->typed_data() + top * columns + side;
      for (int64_t first = 0; first < panels; first += kSide) {  // what is added to stays near
        for (int64_t begin = 0; begin < depth; begin += deep) {
          const float* from = x.typed_data() + top * depth + begin;
          for (int64_t p = first; p < std::min(panels, first + kSide); ++p) {
            (begin == 0 ? Column<false> : Column<true>)(
                count, from, depth, place(begin, p), std::min(deep, depth - begin),
                wide - p * kPanel, to + p * kPanel, columns);
          }
        }
      }
    });
  }
  return ffi::Error::Success();
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_training_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("turned"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_weight_gradient, Gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
