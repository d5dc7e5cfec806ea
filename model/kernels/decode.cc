// Decoding on a CPU: a product with few rows, and attention over the filled slots of a cache.
//
// Both are bound by reading (weights, keys and values) and by how little is done around it, where
// a general matrix product packs and blocks. Written with the compiler's vector types, so that one
// source serves every instruction set. XLA calls them through its foreign-function interface; the
// work is shared out over XLA's own threads.

#include <cmath>
#include <vector>

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Exp;
using native::Floats;
using native::kPanel;
using native::kTall;
using native::kWide;
using native::Load;
using native::Share;
using native::Store;
using native::Sum;
using native::Vector;

constexpr int kFew = kWide / 2 - 1;  // rows of x that would leave half of a vector empty

// y[r, :] = sum over k of left[r, k] * panel[k, :], for kRows rows and a panel of kVectors columns.
// Meanwhile `ahead` rows from `soon` on are fetched, as many bytes in each stretch of time.
template <int kVectors, int kRows>
void Tile(const float* left, int64_t left_row, const float* panel, int64_t depth, float* y,
          const float* soon, int64_t ahead) {
  constexpr int64_t kLine = 64 / sizeof(float), kColumns = kVectors * kWide;
  Vector sum[kRows][kVectors] = {};
  for (int64_t begin = 0; begin < depth; begin += kLine) {
    for (int64_t r = 0; r < ahead; ++r) __builtin_prefetch(soon + r * left_row + begin);
    const int64_t end = std::min(depth, begin + kLine);
#pragma GCC unroll 4
    for (int64_t k = begin; k < end; ++k, panel += kColumns) {
      Vector right[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) right[j] = Load(panel + j * kWide);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const float value = left[r * left_row + k];
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sum[r][j] += value * right[j];
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) Store(y + r * kColumns + j * kWide, sum[r][j]);
  }
}

// The same for any number of rows up to kRows.
template <int kVectors, int kRows>
void TileOf(int64_t rows, const float* left, int64_t left_row, const float* panel, int64_t depth,
            float* y, const float* soon, int64_t ahead) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      Tile<kVectors, kRows>(left, left_row, panel, depth, y, soon, ahead);
    } else {
      TileOf<kVectors, kRows - 1>(rows, left, left_row, panel, depth, y, soon, ahead);
    }
  }
}

// y[r, n] = left[r] . right[n] for kRows rows of left and `count` of right, all `depth` long; y's
// rows are y_row long.
template <int kRows>
void Dots(const float* left, const float* right, int64_t count, int64_t depth, float* y,
          int64_t y_row) {
  for (int64_t n = 0; n < count; ++n, right += depth) {
    Vector sum[kRows] = {}, more[kRows] = {};
    int64_t k = 0;
    for (; k + 2 * kWide <= depth; k += 2 * kWide) {
      const Vector a = Load(right + k), b = Load(right + k + kWide);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r] += Load(left + r * depth + k) * a;
        more[r] += Load(left + r * depth + k + kWide) * b;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float total = Sum(sum[r] + more[r]);
      for (int64_t i = k; i < depth; ++i) total += left[r * depth + i] * right[i];
      y[r * y_row + n] = total;
    }
  }
}

// The same for any number of rows up to kRows.
template <int kRows>
void DotsOf(int64_t rows, const float* left, const float* right, int64_t count, int64_t depth,
            float* y, int64_t y_row) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      Dots<kRows>(left, right, count, depth, y, y_row);
    } else {
      DotsOf<kRows - 1>(rows, left, right, count, depth, y, y_row);
    }
  }
}

// to [K, kWidth] = from [count, K] transposed, for K columns of rows that are `row` long; a cache
// line of each row at a time.
template <int kWidth>
void Turn(const float* from, int64_t row, int64_t count, int64_t columns, float* to) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t k = 0; k < columns; k += kLine) {
    const int64_t line = std::min(kLine, columns - k);
    for (int64_t r = 0; r < kWidth; ++r) {
      for (int64_t i = 0; i < line; ++i) {
        to[(k + i) * kWidth + r] = r < count ? from[r * row + k + i] : 0.0f;
      }
    }
  }
}

// y [M, N] = x [M, K] @ w [N, K] transposed: w is read once, in order.
ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> w,
                         ffi::ResultBuffer<ffi::F32> y) {
  const int64_t rows = x.dimensions()[0], depth = x.dimensions()[1], outputs = w.dimensions()[0];
  const float* left = x.typed_data();
  const float* right = w.typed_data();
  float* out = y->typed_data();
  constexpr int64_t kPiece = 24;  // rows of w in a piece of work, a multiple of kTall

  if (rows <= kFew) {
    Share(pool, (outputs + kPiece - 1) / kPiece, [&](int64_t piece) {
      const int64_t n = piece * kPiece, count = std::min(kPiece, outputs - n);
      DotsOf<kFew>(rows, left, right + n * depth, count, depth, out + n, outputs);
    });
    return ffi::Error::Success();
  }

  // Here the rows of x make the panels, turned [K, kPanel] once, and every row of w passes them.
  constexpr int64_t kBlock = 64;
  const int64_t panels = (rows + kPanel - 1) / kPanel, blocks = (depth + kBlock - 1) / kBlock;
  thread_local Floats scratch;  // kept, so that it need not be made anew, and cleared, each time
  scratch.resize(std::max<size_t>(scratch.size(), panels * depth * kPanel));
  float* turned = scratch.data();
  auto rows_of = [&](int64_t panel) { return std::min<int64_t>(kPanel, rows - panel * kPanel); };
  auto width_of = [&](int64_t panel) { return rows_of(panel) > kWide ? kPanel : kWide; };
  auto turn = [&](int64_t piece) {
    const int64_t p = piece / blocks, k = piece % blocks * kBlock, width = width_of(p);
    (width == kPanel ? Turn<kPanel> : Turn<kWide>)(
        left + p * kPanel * depth + k, depth, rows_of(p), std::min(kBlock, depth - k),
        turned + p * depth * kPanel + k * width);
  };
  if (rows * depth < (1 << 13)) {  // done before another thread has begun
    for (int64_t piece = 0; piece < panels * blocks; ++piece) turn(piece);
  } else {
    Share(pool, panels * blocks, turn);
  }
  // A few rows of w pass all panels while they are near, and in each pass a part of those behind
  // them is fetched: memory is read all the time, and never waited for.
  Share(pool, (outputs + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t last = std::min(outputs, (piece + 1) * kPiece);
    alignas(64) float part[kTall * kPanel];
    for (int64_t n = piece * kPiece; n < last; n += kTall) {
      const int64_t count = std::min<int64_t>(kTall, last - n);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t from = kTall * p / panels, to = kTall * (p + 1) / panels;
        const int64_t width = width_of(p);
        (width == kPanel ? TileOf<2, kTall> : TileOf<1, kTall>)(
            count, right + n * depth, depth, turned + p * depth * kPanel, depth, part,
            right + (n + kTall + from) * depth, to - from);
        for (int64_t r = 0; r < rows_of(p); ++r) {
          float* y_row = out + (p * kPanel + r) * outputs + n;
          for (int64_t i = 0; i < count; ++i) y_row[i] = part[i * width + r];
        }
      }
    }
  });
  return ffi::Error::Success();
}

// Brings `count` numbers near, but not nearest, where they would push out what is in use.
inline void Fetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(float)) __builtin_prefetch(from + i, 0, 2);
}

// The usual head is 64 wide; up to 8 vectors of sums stay in registers.
constexpr int kMix = std::min(8, 64 / kWide);

// mixed[0 ... kSums * kWide) = share * sum over i of weight[i] * values[seen[i], ...].
template <int kSums>
void Mix(const float* weight, const float* values, const int32_t* seen, int64_t count, int64_t dim,
         float share, float* mixed, int64_t ahead) {
  Vector sum[kSums] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float* value = values + seen[i] * dim;
    if (ahead) Fetch(value + ahead, kSums * kWide);
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) sum[j] += weight[i] * Load(value + j * kWide);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kSums; ++j) Store(mixed + j * kWide, sum[j] * share);
}

// One query over `count` slots of one head: weight [count + kWide] is scratch, mixed [dim] the result.
// Meanwhile the same slots of the head that lies `ahead` numbers further on are fetched.
void Attend(const float* query, const float* keys, const float* values, const int32_t* seen,
            int64_t count, int64_t dim, float scale, float* weight, float* mixed, int64_t ahead) {
  float top = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    const float* key = keys + seen[i] * dim;
    if (ahead) Fetch(key + ahead, dim);
    Vector a = {}, b = {};
    int64_t d = 0;
    for (; d + 2 * kWide <= dim; d += 2 * kWide) {
      a += Load(query + d) * Load(key + d);
      b += Load(query + d + kWide) * Load(key + d + kWide);
    }
    float score = Sum(a + b);
    for (; d < dim; ++d) score += query[d] * key[d];
    weight[i] = score * scale;
    top = std::max(top, weight[i]);
  }
  const int64_t whole = (count + kWide - 1) / kWide * kWide;
  std::fill(weight + count, weight + whole, -INFINITY);
  Vector together = {};
  for (int64_t i = 0; i < whole; i += kWide) {
    const Vector e = Exp(Load(weight + i) - top);
    together += e;
    Store(weight + i, e);
  }
  const float share = count ? 1.0f / Sum(together) : 0.0f;
  int64_t d = 0;
  for (; d + kMix * kWide <= dim; d += kMix * kWide) {
    Mix<kMix>(weight, values + d, seen, count, dim, share, mixed + d, ahead);
  }
  for (; d + kWide <= dim; d += kWide) {
    Mix<1>(weight, values + d, seen, count, dim, share, mixed + d, ahead);
  }
  for (; d < dim; ++d) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weight[i] * values[seen[i] * dim + d];
    mixed[d] = sum * share;
  }
}

// Appends the keys and values of T new tokens to the cache, in place, and attends from them over the
// slots that each may see; see `append_and_attend` in plain.py.
ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key,
                     ffi::Buffer<ffi::F32> value, ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>,
                     ffi::Buffer<ffi::S32> query_segments, ffi::Buffer<ffi::S32> key_segments,
                     ffi::Buffer<ffi::S32> start, int64_t window, ffi::ResultBuffer<ffi::F32> out,
                     ffi::ResultBuffer<ffi::F32> key_cache,
                     ffi::ResultBuffer<ffi::F32> value_cache) {
  const int64_t batch = query.dimensions()[0], length = query.dimensions()[1];
  const int64_t heads = query.dimensions()[2], dim = query.dimensions()[3];
  const int64_t kv_heads = key.dimensions()[2], slots = key_cache->dimensions()[2];
  const int64_t group = heads / kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const float *queries = query.typed_data(), *new_keys = key.typed_data();
  const float* new_values = value.typed_data();
  float *keys = key_cache->typed_data(), *values = value_cache->typed_data();
  const int32_t *asked = query_segments.typed_data(), *kept = key_segments.typed_data();
  const int32_t* first = start.typed_data();
  float* mixed = out->typed_data();

  // A piece of work is one row and one head of keys, with the query heads that share it.
  Share(pool, batch * kv_heads, [&](int64_t piece) {
    const int64_t b = piece / kv_heads, kv = piece % kv_heads;
    float *own_keys = keys + piece * slots * dim, *own_values = values + piece * slots * dim;
    const int64_t free = std::max<int64_t>(0, std::min<int64_t>(first[b], slots - length));
    for (int64_t t = 0; t < length; ++t) {
      const int64_t from = ((b * length + t) * kv_heads + kv) * dim, to = (free + t) * dim;
      std::memcpy(own_keys + to, new_keys + from, dim * sizeof(float));
      std::memcpy(own_values + to, new_values + from, dim * sizeof(float));
    }
    Floats weight(slots + kWide);
    std::vector<int32_t> seen(slots);
    for (int64_t t = 0; t < length; ++t) {
      const int32_t segment = asked[b * length + t];
      const int64_t own = std::min(first[b] + t, slots - 1);
      int64_t count = 0;
      if (segment != 0) {  // padding and rows that have ended: nobody reads what they see
        for (int64_t s = std::max<int64_t>(0, first[b] + t - window + 1); s <= own; ++s) {
          if (kept[b * slots + s] == segment) seen[count++] = s;
        }
      }
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const int64_t at = ((b * length + t) * heads + h) * dim;
        const bool first_to_read = t == 0 && h == kv * group;
        Attend(queries + at, own_keys, own_values, seen.data(), count, dim, scale, weight.data(),
               mixed + at, first_to_read ? slots * dim : 0);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("window")
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
