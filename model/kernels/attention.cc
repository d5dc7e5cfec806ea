// Causal attention for training on a CPU, forward and backward, float32.
//
// A task is one row of the batch and one key head. It copies its heads out of [B, T, heads, D],
// so that no array is transposed, and works through blocks of up to 64 queries by 64 keys, each of
// one segment, that stay in the nearest caches; blocks that no query sees are left out. Only the
// log-normaliser of each row is kept for the backward pass (Dao et al. 2022, FlashAttention,
// algorithms 1 and 4).

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
  int64_t wide;                                  // dim, padded
  int64_t window;                                // how many tokens a query sees at most
  const int32_t* segments;                       // [B, T], or null: one segment

  Shape(const ffi::Buffer<ffi::F32>& query, const ffi::Buffer<ffi::F32>& key,
        const ffi::Buffer<ffi::S32>& ids, int64_t window)
      : batch(query.dimensions()[0]),
        length(query.dimensions()[1]),
        heads(query.dimensions()[2]),
        key_heads(key.dimensions()[2]),
        dim(query.dimensions()[3]),
        wide((dim + kPanel - 1) / kPanel * kPanel),
        window(window),
        segments(ids.element_count() ? ids.typed_data() : nullptr) {}

  int64_t groups() const { return heads / key_heads; }
};

// Tokens of one segment, in a row of slots of which a block has a multiple of kPanel.
struct Block {
  int64_t begin, count;  // tokens
  int64_t slot, room;    // slots
  int32_t segment;
};

// The blocks of a row: which of them meet, and how much of them.
class Blocks {
 public:
  Blocks(const Shape& s, int64_t row) : window_(s.window) {
    const int32_t* ids = s.segments ? s.segments + row * s.length : nullptr;
    for (int64_t begin = 0, end; begin < s.length; begin = end) {
      const int64_t most = std::min(s.length, begin + kBlock);
      for (end = begin + 1; end < most && !(ids && ids[end] != ids[begin]);) ++end;
      const int64_t room = (end - begin + kPanel - 1) / kPanel * kPanel;
      blocks_.push_back({begin, end - begin, slots_, room, ids ? ids[begin] : 0});
      slots_ += room;
    }
  }

  int64_t slots() const { return slots_; }
  std::vector<Block>::const_iterator begin() const { return blocks_.begin(); }
  std::vector<Block>::const_iterator end() const { return blocks_.end(); }

  // Whether any of the queries may see any of the keys.
  bool Meet(const Block& queries, const Block& keys) const {
    return keys.begin <= queries.begin && keys.segment == queries.segment &&
           queries.begin - (keys.begin + keys.count - 1) < window_;
  }

  // Scores [count of the queries, room of the keys], with kMasked where a query does not see a key.
  void Mask(const Block& queries, const Block& keys, float* scores) const {
    const bool before = keys.begin < queries.begin && keys.count == keys.room;
    if (before && queries.begin + queries.count - keys.begin <= window_) return;
    for (int64_t r = 0; r < queries.count; ++r) {
      float* line = scores + r * keys.room;
      const int64_t ahead = queries.begin + r - keys.begin;  // keys 0 ... ahead are visible
      for (int64_t c = std::min(keys.count, ahead + 1); c < keys.room; ++c) line[c] = kMasked;
      for (int64_t c = 0; c < std::min(keys.count, ahead - window_ + 1); ++c) line[c] = kMasked;
    }
  }

 private:
  const int64_t window_;
  int64_t slots_ = 0;
  std::vector<Block> blocks_;
};

// One head of x [B, T, heads, D] as [slots, wide], times a factor; zeros around it.
void Gather(const float* x, int64_t row, int64_t head, int64_t heads, const Shape& s,
            const Blocks& blocks, float factor, Floats& out) {
  out.assign(blocks.slots() * s.wide, 0.0f);
  for (const Block& b : blocks) {
    const float* from = x + ((row * s.length + b.begin) * heads + head) * s.dim;
    for (int64_t t = b.slot; t < b.slot + b.count; ++t, from += heads * s.dim) {
      float* to = out.data() + t * s.wide;
      for (int64_t d = 0; d < s.dim; ++d) to[d] = factor * from[d];
    }
  }
}

// The way back.
void Scatter(const Floats& x, int64_t row, int64_t head, int64_t heads, const Shape& s,
             const Blocks& blocks, float factor, float* out) {
  for (const Block& b : blocks) {
    float* to = out + ((row * s.length + b.begin) * heads + head) * s.dim;
    for (int64_t t = b.slot; t < b.slot + b.count; ++t, to += heads * s.dim) {
      const float* from = x.data() + t * s.wide;
      for (int64_t d = 0; d < s.dim; ++d) to[d] = factor * from[d];
    }
  }
}

// Each block [room, wide] of x transposed to [wide, room].
void Turn(const Floats& x, const Shape& s, const Blocks& blocks, Floats& out) {
  out.resize(blocks.slots() * s.wide);
  for (const Block& b : blocks) {
    const float* from = x.data() + b.slot * s.wide;
    float* to = out.data() + b.slot * s.wide;
    for (int64_t d = 0; d < s.wide; ++d) {
      for (int64_t t = 0; t < b.room; ++t) to[d * b.room + t] = from[t * s.wide + d];
    }
  }
}

// Weights e^(scores - top) in place; returns their sum.
inline float Weigh(float* line, int64_t count, float top) {
  Vector sum{};
  for (int64_t c = 0; c < count; c += kWide) {
    const Vector w = Exp(Load(line + c) - top);
    Store(line + c, w);
    sum += w;
  }
  return native::Sum(sum);
}

inline float TopOf(const float* line, int64_t count, float top) {
  Vector most = Load(line);
  for (int64_t c = kWide; c < count; c += kWide) most = native::Larger(most, Load(line + c));
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
    const Blocks blocks(s, row);
    thread_local Floats q, k, v, turned, mixed, scores;
    Gather(key.typed_data(), row, key_head, s.key_heads, s, blocks, 1.0f, k);
    Gather(value.typed_data(), row, key_head, s.key_heads, s, blocks, 1.0f, v);
    Turn(k, s, blocks, turned);
    scores.resize(blocks.slots() * kBlock);
    for (int64_t g = 0; g < s.groups(); ++g) {
      const int64_t head = key_head * s.groups() + g;
      Gather(query.typed_data(), row, head, s.heads, s, blocks, scale, q);
      mixed.assign(blocks.slots() * s.wide, 0.0f);
      float* logs = normaliser->typed_data() + (row * s.heads + head) * s.length;
      for (const Block& i : blocks) {
        float top[kBlock], total[kBlock] = {};
        std::fill(top, top + kBlock, kMasked);
        for (const Block& j : blocks) {
          if (!blocks.Meet(i, j)) continue;
          float* block = scores.data() + j.slot * kBlock;
          Multiply<false>(i.count, j.room, s.wide, q.data() + i.slot * s.wide, s.wide, 1,
                          turned.data() + j.slot * s.wide, j.room, block, j.room);
          blocks.Mask(i, j, block);
          for (int64_t r = 0; r < i.count; ++r) {
            top[r] = TopOf(block + r * j.room, j.room, top[r]);
          }
        }
        float* to = mixed.data() + i.slot * s.wide;
        for (const Block& j : blocks) {
          if (!blocks.Meet(i, j)) continue;
          float* block = scores.data() + j.slot * kBlock;
          for (int64_t r = 0; r < i.count; ++r) {
            total[r] += Weigh(block + r * j.room, j.room, top[r]);
          }
          Multiply<true>(i.count, s.wide, j.room, block, j.room, 1, v.data() + j.slot * s.wide,
                         s.wide, to, s.wide);
        }
        for (int64_t r = 0; r < i.count; ++r) {
          for (int64_t d = 0; d < s.wide; ++d) to[r * s.wide + d] /= total[r];
          logs[i.begin + r] = top[r] + std::log(total[r]);
        }
      }
      Scatter(mixed, row, head, s.heads, s, blocks, 1.0f, output->typed_data());
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
    const Blocks blocks(s, row);
    thread_local Floats q, k, v, o, d, k_turned, v_turned, dq, dk, dv, inner;
    Gather(key.typed_data(), row, key_head, s.key_heads, s, blocks, 1.0f, k);
    Gather(value.typed_data(), row, key_head, s.key_heads, s, blocks, 1.0f, v);
    Turn(k, s, blocks, k_turned);
    Turn(v, s, blocks, v_turned);
    dk.assign(blocks.slots() * s.wide, 0.0f);
    dv.assign(blocks.slots() * s.wide, 0.0f);
    for (int64_t g = 0; g < s.groups(); ++g) {
      const int64_t head = key_head * s.groups() + g;
      Gather(query.typed_data(), row, head, s.heads, s, blocks, scale, q);
      Gather(output.typed_data(), row, head, s.heads, s, blocks, 1.0f, o);
      Gather(grad.typed_data(), row, head, s.heads, s, blocks, 1.0f, d);
      dq.assign(blocks.slots() * s.wide, 0.0f);
      inner.resize(blocks.slots());
      for (int64_t t = 0; t < blocks.slots(); ++t) {
        Vector sum{};
        for (int64_t e = t * s.wide; e < (t + 1) * s.wide; e += kWide) {
          sum += Load(o.data() + e) * Load(d.data() + e);
        }
        inner[t] = native::Sum(sum);
      }
      const float* logs = normaliser.typed_data() + (row * s.heads + head) * s.length;
      for (const Block& j : blocks) {
        const int64_t keys = j.slot * s.wide;
        for (const Block& i : blocks) {
          if (!blocks.Meet(i, j)) continue;
          const int64_t queries = i.slot * s.wide;
          alignas(64) float weights[kBlock * kBlock], slopes[kBlock * kBlock];
          Multiply<false>(i.count, j.room, s.wide, q.data() + queries, s.wide, 1,
                          k_turned.data() + keys, j.room, weights, j.room);
          blocks.Mask(i, j, weights);
          Multiply<false>(i.count, j.room, s.wide, d.data() + queries, s.wide, 1,
                          v_turned.data() + keys, j.room, slopes, j.room);
          for (int64_t r = 0; r < i.count; ++r) {
            const float log = logs[i.begin + r], mean = inner[i.slot + r];
            for (int64_t c = r * j.room; c < (r + 1) * j.room; c += kWide) {
              const Vector w = Exp(Load(weights + c) - log);
              Store(weights + c, w);
              Store(slopes + c, w * (Load(slopes + c) - mean));
            }
          }
          Multiply<true>(j.room, s.wide, i.count, weights, 1, j.room, d.data() + queries, s.wide,
                         dv.data() + keys, s.wide);
          Multiply<true>(j.room, s.wide, i.count, slopes, 1, j.room, q.data() + queries, s.wide,
                         dk.data() + keys, s.wide);
          Multiply<true>(i.count, s.wide, j.room, slopes, j.room, 1, k.data() + keys, s.wide,
                         dq.data() + queries, s.wide);
        }
      }
      Scatter(dq, row, head, s.heads, s, blocks, scale, grad_query->typed_data());
    }
    Scatter(dk, row, key_head, s.key_heads, s, blocks, 1.0f, grad_key->typed_data());
    Scatter(dv, row, key_head, s.key_heads, s, blocks, 1.0f, grad_value->typed_data());
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
