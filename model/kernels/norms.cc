// LayerNorm and RMSNorm on a CPU, float32, and their gradients: each vector is read from memory
// once, and what is asked of it several times comes from the nearest cache.

#include <cmath>
#include <utility>

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Floats;
using native::kWide;
using native::Vector;

constexpr int64_t kRows = 64;  // of a task; sums over them are added up in the order of the tasks

// The numbers at a place: a vector of them, or behind the last whole vector one.
struct Wide {
  int64_t at;
  Vector operator()(const float* x) const { return native::Load(x + at); }
  void Put(float* x, Vector value) const { native::Store(x + at, value); }
};
struct One {
  int64_t at;
  float operator()(const float* x) const { return x[at]; }
  void Put(float* x, float value) const { x[at] = value; }
};

template <typename Body>
inline void Each(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) body(Wide{i});
  for (; i < count; ++i) body(One{i});
}

template <typename Body>
inline float Mean(int64_t count, Body body) {
  Vector sum = {};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) sum += body(Wide{i});
  float total = native::Sum(sum);
  for (; i < count; ++i) total += body(One{i});
  return total / count;
}

bool Wrong(const ffi::Buffer<ffi::F32>& x, int64_t width) {
  return x.element_count() && static_cast<int64_t>(x.element_count()) != width;
}

// y = (x - mean) / sqrt(variance + eps) * scale + bias of each row of x [rows, width]; scale and
// bias have no element where there are none. Also the mean (0 where not centred) and 1 / sqrt.
ffi::Error Norm(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale,
                ffi::Buffer<ffi::F32> bias, ffi::ResultBuffer<ffi::F32> y,
                ffi::ResultBuffer<ffi::F32> means, ffi::ResultBuffer<ffi::F32> inverses,
                bool centred, float eps) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  const float* scales = scale.element_count() ? scale.typed_data() : nullptr;
  const float* biases = bias.element_count() ? bias.typed_data() : nullptr;
  if (Wrong(scale, width) || Wrong(bias, width)) {
    return ffi::Error::InvalidArgument("scale and bias must be as wide as x");
  }
  native::Share(pool, (rows + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row) {
      const float* in = x.typed_data() + row * width;
      float* out = y->typed_data() + row * width;
      const float mean = centred ? Mean(width, [&](auto at) { return at(in); }) : 0.0f;
      const float variance = Mean(width, [&](auto at) {
        const auto value = at(in) - mean;
        return value * value;
      });
      const float inverse = 1.0f / std::sqrt(variance + eps);
      Each(width, [&](auto at) {
        auto value = (at(in) - mean) * inverse;
        if (scales) value *= at(scales);
        if (biases) value += at(biases);
        at.Put(out, value);
      });
      means->typed_data()[row] = mean;
      inverses->typed_data()[row] = inverse;
    }
  });
  return ffi::Error::Success();
}

// Of the same the gradients by x, and, summed over all rows, by scale and bias.
ffi::Error Gradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale,
                    ffi::Buffer<ffi::F32> means, ffi::Buffer<ffi::F32> inverses,
                    ffi::Buffer<ffi::F32> grad, ffi::ResultBuffer<ffi::F32> by_x,
                    ffi::ResultBuffer<ffi::F32> by_scale, ffi::ResultBuffer<ffi::F32> by_bias,
                    bool centred) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t tasks = (rows + kRows - 1) / kRows;
  const bool scaled = by_scale->element_count(), biased = by_bias->element_count();
  const float* scales = scaled ? scale.typed_data() : nullptr;
  if (Wrong(scale, width)) return ffi::Error::InvalidArgument("scale must be as wide as x");
  Floats sums(scaled || biased ? 2 * width * tasks : 0);
  native::Share(pool, tasks, [&](int64_t task) {
    float* of_scale = scaled || biased ? sums.data() + 2 * width * task : nullptr;
    float* of_bias = scaled || biased ? of_scale + width : nullptr;
    thread_local Floats normal, slope;
    normal.resize(width);
    slope.resize(width);
    for (int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row) {
      const float* in = x.typed_data() + row * width;
      const float* g = grad.typed_data() + row * width;
      float *n = normal.data(), *s = slope.data();
      const float mean = means.typed_data()[row], inverse = inverses.typed_data()[row];
      const float along = Mean(width, [&](auto at) {
        const auto value = (at(in) - mean) * inverse;
        auto steep = at(g);
        if (scaled) at.Put(of_scale, at(of_scale) + steep * value);
        if (biased) at.Put(of_bias, at(of_bias) + steep);
        if (scaled) steep *= at(scales);
        at.Put(n, value);
        at.Put(s, steep);
        return steep * value;
      });
      const float level = centred ? Mean(width, [&](auto at) { return at(s); }) : 0.0f;
      float* out = by_x->typed_data() + row * width;
      Each(width, [&](auto at) { at.Put(out, (at(s) - at(n) * along - level) * inverse); });
    }
  });
  for (auto [result, offset] : {std::pair(scaled ? by_scale->typed_data() : nullptr, int64_t{0}),
                                std::pair(biased ? by_bias->typed_data() : nullptr, width)}) {
    if (!result) continue;
    std::fill(result, result + width, 0.0f);
    for (int64_t task = 0; task < tasks; ++task) {
      const float* from = sums.data() + 2 * width * task + offset;
      for (int64_t i = 0; i < width; ++i) result[i] += from[i];
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_norm, Norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("centred")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_norm_gradient, Gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("centred"));
