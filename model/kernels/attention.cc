// Causal attention for training on a CPU, forward and backward, float32.
//
// A task is one row of the batch and one key head. It copies its heads out of [B, T, heads, D],
// so that no array is transposed, and works through blocks of 64 queries by 64 keys that stay in
// the nearest caches; blocks that no query sees are left out. Only the log-normaliser of each row
// is kept for the backward pass (Dao et al. 2022, FlashAttention, algorithms 1 and 4).

#include <cmath>
#include <vector>

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Exp;
using native::Floats;
using native::kPanel;
using native::kWide;
using native::Load;
using native::Multiply;
using native::Store;
using native::Vector;

constexpr int64_t kBlock = 64;
constexpr float kMasked = -1e30f;

struct Shape {
  int64_t batch, length, heads, key_heads, dim;  // as given
  int64_t blocks, padded, wide;                  // length in blocks, and padded; dim padded
  int64_t window;                                // how many tokens a query sees at most
  const int32_t* segments;                       // [B, T], or null: one segment

  Shape(const ffi::Buffer<ffi::F32>& query, const ffi::Buffer<ffi::F32>& key,
        const ffi::Buffer<ffi::S32>& ids, int64_t window)
      : batch(query.dimensions()[0]),
        length(query.dimensions()[1]),
        heads(query.dimensions()[2]),
        key_heads(key.dimensions()[2]),
        dim(query.dimensions()[3]),
        blocks((length + kBlock - 1) / kBlock),
        padded(blocks * kBlock),
        wide((dim + kPanel - 1) / kPanel * kPanel),
        window(window),
        segments(ids.element_count() ? ids.typed_data() : nullptr) {}

  int64_t groups() const { return heads / key_heads; }
  // Queries of block i: the last may be a part.
  int64_t QueriesOf(int64_t i) const { return std::min(kBlock, length - i * kBlock); }
  const int32_t* SegmentsOf(int64_t row) const {
    return segments ? segments + row * length : nullptr;
  }
};

// One head of x [B, T, heads, D] as [padded, wide], times a factor; zeros around it.
void Gather(const float* x, int64_t row, int64_t head, int64_t heads, const Shape& s, float factor,
            Floats& out) {
  out.assign(s.padded * s.wide, 0.0f);
  const float* from = x + (row * s.length * heads + head) * s.dim;
  for (int64_t t = 0; t < s.length; ++t, from += heads * s.dim) {
    float* to = out.data() + t * s.wide;
    for (int64_t d = 0; d < s.dim; ++d) to[d] = factor * from[d];
  }
}

// The way back.
void Scatter(const Floats& x, int64_t row, int64_t head, int64_t heads, const Shape& s,
             float factor, float* out) {
  float* to = out + (row * s.length * heads + head) * s.dim;
  for (int64_t t = 0; t < s.length; ++t, to += heads * s.dim) {
    const float* from = x.data() + t * s.wide;
    for (int64_t d = 0; d < s.dim; ++d) to[d] = factor * from[d];
  }
}

// Each block [64, wide] of x transposed to [wide, 64].
void Turn(const Floats& x, const Shape& s, Floats& out) {
  out.resize(s.padded * s.wide);
  for (int64_t b = 0; b < s.blocks; ++b) {
    const float* from = x.data() + b * kBlock * s.wide;
    float* to = out.data() + b * kBlock * s.wide;
    for (int64_t d = 0; d < s.wide; ++d) {
      for (int64_t t = 0; t < kBlock; ++t) to[d * kBlock + t] = from[t * s.wide + d];
    }
  }
}

// Which blocks of queries and keys meet, and how much of them.
class Mask {
 public:
  Mask(const Shape& s, int64_t row) : s_(s), ids_(s.SegmentsOf(row)) {
    if (!ids_) return;
    for (int64_t b = 0; b < s.blocks; ++b) {
      const int32_t* from = ids_ + b * kBlock;
      const int32_t* to = ids_ + std::min(s.length, (b + 1) * kBlock);
      least_.push_back(*std::min_element(from, to));
      most_.push_back(*std::max_element(from, to));
    }
  }

  // Whether any query of block i may see any key of block j.
  bool Meets(int64_t i, int64_t j) const {
    if (j > i || i * kBlock - ((j + 1) * kBlock - 1) >= s_.window) return false;
    return !ids_ || (least_[i] <= most_[j] && least_[j] <= most_[i]);
  }

  // Scores [64, 64] of blocks i and j, with kMasked where a query does not see a key.
  void Apply(int64_t i, int64_t j, float* scores) const {
    const bool one = !ids_ || (least_[i] == most_[i] && least_[j] == most_[j]);
    if (one && i > j && (i + 1) * kBlock - j * kBlock <= s_.window) return;
    for (int64_t r = 0; r < s_.QueriesOf(i); ++r) {
      float* line = scores + r * kBlock;
      const int64_t t = i * kBlock + r, ahead = t - j * kBlock;  // keys 0 ... ahead are visible
      for (int64_t c = std::max<int64_t>(0, ahead + 1); c < kBlock; ++c) line[c] = kMasked;
      for (int64_t c = 0; c < std::min(kBlock, ahead - s_.window + 1); ++c) line[c] = kMasked;
      if (one) continue;
      const int32_t mine = ids_[t];
      const int64_t end = std::min(kBlock, ahead + 1);
      for (int64_t c = 0; c < end; ++c) {
        if (ids_[j * kBlock + c] != mine) line[c] = kMasked;
      }
    }
  }

 private:
  const Shape& s_;
  const int32_t* ids_;
  std::vector<int32_t> least_, most_;
};

// Weights e^(scores - top) in place; returns their sum.
inline float Weigh(float* line, float top) {
  Vector sum{};
  for (int64_t c = 0; c < kBlock; c += kWide) {
    const Vector w = Exp(Load(line + c) - top);
    Store(line + c, w);
    sum += w;
  }
  return native::Sum(sum);
}

inline float TopOf(const float* line, float top) {
  Vector most = Load(line);
  for (int64_t c = kWide; c < kBlock; c += kWide) most = native::Larger(most, Load(line + c));
  return std::max(top, native::Largest(most));
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key,
                   ffi::Buffer<ffi::F32> value, ffi::Buffer<ffi::S32> ids,
                   ffi::ResultBuffer<ffi::F32> output, ffi::ResultBuffer<ffi::F32> normaliser,
                   int64_t window) {
  const Shape s(query, key, ids, window);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
  native::Share(pool, s.batch * s.key_heads, [&](int64_t task) {
    const int64_t row = task / s.key_heads, key_head = task % s.key_heads;
    thread_local Floats q, k, v, turned, mixed, scores;
    Gather(key.typed_data(), row, key_head, s.key_heads, s, 1.0f, k);
    Gather(value.typed_data(), row, key_head, s.key_heads, s, 1.0f, v);
    Turn(k, s, turned);
    scores.resize(s.padded * kBlock);
    const Mask mask(s, row);
    for (int64_t g = 0; g < s.groups(); ++g) {
      const int64_t head = key_head * s.groups() + g;
      Gather(query.typed_data(), row, head, s.heads, s, scale, q);
      mixed.assign(s.padded * s.wide, 0.0f);
      float* logs = normaliser->typed_data() + (row * s.heads + head) * s.length;
      for (int64_t i = 0; i < s.blocks; ++i) {
        const int64_t count = s.QueriesOf(i);
        float top[kBlock], total[kBlock] = {};
        std::fill(top, top + kBlock, kMasked);
        for (int64_t j = 0; j <= i; ++j) {
          if (!mask.Meets(i, j)) continue;
          float* block = scores.data() + j * kBlock * kBlock;
          Multiply<false>(count, kBlock, s.wide, q.data() + i * kBlock * s.wide, s.wide, 1,
                          turned.data() + j * kBlock * s.wide, kBlock, block, kBlock);
          mask.Apply(i, j, block);
          for (int64_t r = 0; r < count; ++r) top[r] = TopOf(block + r * kBlock, top[r]);
        }
        float* to = mixed.data() + i * kBlock * s.wide;
        for (int64_t j = 0; j <= i; ++j) {
          if (!mask.Meets(i, j)) continue;
          float* block = scores.data() + j * kBlock * kBlock;
          for (int64_t r = 0; r < count; ++r) total[r] += Weigh(block + r * kBlock, top[r]);
          Multiply<true>(count, s.wide, kBlock, block, kBlock, 1, v.data() + j * kBlock * s.wide,
                         s.wide, to, s.wide);
        }
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t d = 0; d < s.wide; ++d) to[r * s.wide + d] /= total[r];
          logs[i * kBlock + r] = top[r] + std::log(total[r]);
        }
      }
      Scatter(mixed, row, head, s.heads, s, 1.0f, output->typed_data());
    }
  });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key,
                    ffi::Buffer<ffi::F32> value, ffi::Buffer<ffi::S32> ids,
                    ffi::Buffer<ffi::F32> output, ffi::Buffer<ffi::F32> normaliser,
                    ffi::Buffer<ffi::F32> grad, ffi::ResultBuffer<ffi::F32> grad_query,
                    ffi::ResultBuffer<ffi::F32> grad_key, ffi::ResultBuffer<ffi::F32> grad_value,
                    int64_t window) {
  const Shape s(query, key, ids, window);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
  native::Share(pool, s.batch * s.key_heads, [&](int64_t task) {
    const int64_t row = task / s.key_heads, key_head = task % s.key_heads;
    thread_local Floats q, k, v, o, d, k_turned, v_turned, dq, dk, dv, inner, logs;
    Gather(key.typed_data(), row, key_head, s.key_heads, s, 1.0f, k);
    Gather(value.typed_data(), row, key_head, s.key_heads, s, 1.0f, v);
    Turn(k, s, k_turned);
    Turn(v, s, v_turned);
    dk.assign(s.padded * s.wide, 0.0f);
    dv.assign(s.padded * s.wide, 0.0f);
    const Mask mask(s, row);
    for (int64_t g = 0; g < s.groups(); ++g) {
      const int64_t head = key_head * s.groups() + g;
      Gather(query.typed_data(), row, head, s.heads, s, scale, q);
      Gather(output.typed_data(), row, head, s.heads, s, 1.0f, o);
      Gather(grad.typed_data(), row, head, s.heads, s, 1.0f, d);
      dq.assign(s.padded * s.wide, 0.0f);
      inner.assign(s.padded, 0.0f);
      logs.assign(s.padded, 0.0f);
      std::memcpy(logs.data(), normaliser.typed_data() + (row * s.heads + head) * s.length,
                  s.length * sizeof(float));
      for (int64_t t = 0; t < s.length; ++t) {
        Vector sum{};
        for (int64_t e = t * s.wide; e < (t + 1) * s.wide; e += kWide) {
          sum += Load(o.data() + e) * Load(d.data() + e);
        }
        inner[t] = native::Sum(sum);
      }
      for (int64_t j = 0; j < s.blocks; ++j) {
        const int64_t keys = j * kBlock * s.wide;
        for (int64_t i = j; i < s.blocks; ++i) {
          if (!mask.Meets(i, j)) continue;
          const int64_t queries = i * kBlock * s.wide, count = s.QueriesOf(i);
          alignas(64) float weights[kBlock * kBlock], slopes[kBlock * kBlock];
          Multiply<false>(count, kBlock, s.wide, q.data() + queries, s.wide, 1,
                          k_turned.data() + keys, kBlock, weights, kBlock);
          mask.Apply(i, j, weights);
          Multiply<false>(count, kBlock, s.wide, d.data() + queries, s.wide, 1,
                          v_turned.data() + keys, kBlock, slopes, kBlock);
          for (int64_t r = 0; r < count; ++r) {
            const float log = logs[i * kBlock + r], mean = inner[i * kBlock + r];
            for (int64_t c = r * kBlock; c < (r + 1) * kBlock; c += kWide) {
              const Vector w = Exp(Load(weights + c) - log);
              Store(weights + c, w);
              Store(slopes + c, w * (Load(slopes + c) - mean));
            }
          }
          Multiply<true>(kBlock, s.wide, count, weights, 1, kBlock, d.data() + queries, s.wide,
                         dv.data() + keys, s.wide);
          Multiply<true>(kBlock, s.wide, count, slopes, 1, kBlock, q.data() + queries, s.wide,
                         dk.data() + keys, s.wide);
          Multiply<true>(count, s.wide, kBlock, slopes, kBlock, 1, k.data() + keys, s.wide,
                         dq.data() + queries, s.wide);
        }
      }
      Scatter(dq, row, head, s.heads, s, scale, grad_query->typed_data());
    }
    Scatter(dk, row, key_head, s.key_heads, s, 1.0f, grad_key->typed_data());
    Scatter(dv, row, key_head, s.key_heads, s, 1.0f, grad_value->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_attention_forward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_attention_backward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("window"));
