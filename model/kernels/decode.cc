// Decoding on a CPU: a product with few rows, attention over the filled slots of a cache, and the
// draw of a token.
//
// All are bound by reading (weights, keys and values, logits) and by how little is done around it,
// where a general matrix product packs and blocks. Written with the compiler's vector types, so
// that one source serves every instruction set. XLA calls them through its foreign-function
// interface; the work is shared out over XLA's own threads.

#include <cmath>
#include <functional>
#include <vector>

#include "native.h"

namespace ffi = xla::ffi;

namespace {

using native::Exp;
using native::Floats;
using native::kPanel;
using native::kTall;
using native::kWide;
using native::Larger;
using native::Largest;
using native::Load;
using native::Share;
using native::Store;
using native::Sum;
using native::SumEach;
using native::Transpose;
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

// to [K, kWidth] = from [count, K] transposed, for K columns of rows that are `row` long.
template <int kWidth>
void Turn(const float* from, int64_t row, int64_t count, int64_t columns, float* to) {
  int64_t k = 0;
  for (; k + kWide <= columns; k += kWide, to += kWide * kWidth) {
    for (int64_t r = 0; r < kWidth; r += kWide) {
      Vector block[kWide];
      for (int i = 0; i < kWide; ++i) {
        block[i] = r + i < count ? Load(from + (r + i) * row + k) : Vector{};
      }
      Transpose(block);
      for (int i = 0; i < kWide; ++i) Store(to + i * kWidth + r, block[i]);
    }
  }
  for (; k < columns; ++k, to += kWidth) {
    for (int64_t r = 0; r < kWidth; ++r) to[r] = r < count ? from[r * row + k] : 0.0f;
  }
}

// What is made of a product plus its bias; the numbers are those of native_decoding.py.
enum Activation : int64_t { kNone = 0, kGeluTanh = 1, kRelu2 = 2 };

inline Vector Activate(Activation activation, Vector x) {
  if (activation == kRelu2) {
    const Vector positive = Larger(x, Vector{});
    return positive * positive;
  }
  // x (1 + tanh(u)) / 2 = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and
  // Gimpel 2016). Beyond e^87 the quotient is nothing, and the power could not be written.
  const Vector power = x * (x * x * -0.0713548162726f - 1.59576912161f);
  return x / (Exp(power < 87.0f ? power : Vector{} + 87.0f) + 1.0f);
}

// y [M, N] = activation(x [M, K] @ w [N, K] transposed + bias [N]).
struct Part {
  const float* w;
  const float* bias;  // nullptr: none
  int64_t outputs;    // N
  Activation activation;
  float* y;
};

// y[r, 0 ... count) = activation(tile[0 ... count)[r] + bias), for `rows` rows of the part's y from
// its output `first` on.
template <int kWidth>
void Put(const Part& part, int64_t first, const float* tile, int64_t count, int64_t rows,
         float* y) {
  const float* bias = part.bias ? part.bias + first : nullptr;
  y += first;
  for (int64_t n = 0; n < count; n += kWide) {
    const int64_t wide = std::min<int64_t>(kWide, count - n);
    for (int64_t r = 0; r < rows; r += kWide) {
      Vector block[kWide] = {};
      for (int i = 0; i < wide; ++i) {
        block[i] = Load(tile + (n + i) * kWidth + r);
        if (bias) block[i] += bias[n + i];
        if (part.activation) block[i] = Activate(part.activation, block[i]);
      }
      Transpose(block);
      const int64_t last = std::min<int64_t>(kWide, rows - r);
      for (int64_t i = 0; i < last; ++i) {
        std::memcpy(y + (r + i) * part.outputs + n, &block[i], wide * sizeof(float));
      }
    }
  }
}

constexpr int64_t kPiece = 24;  // rows of w in a piece of work, a multiple of kTall

// The parts of one x, `depth` wide, with few rows: every w is read once, in order.
void FewRows(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t depth,
             const std::function<const Part&(int64_t*)>& part_of, int64_t pieces) {
  Share(pool, pieces, [&](int64_t piece) {
    int64_t n = piece;
    const Part& part = part_of(&n);
    const int64_t count = std::min(kPiece, part.outputs - n);
    DotsOf<kFew>(rows, x, part.w + n * depth, count, depth, part.y + n, part.outputs);
    for (int64_t r = 0; r < rows; ++r) {
      float* y = part.y + r * part.outputs + n;
      for (int64_t i = 0; part.bias && i < count; ++i) y[i] += part.bias[n + i];
      for (int64_t i = 0; part.activation && i < count; i += kWide) {
        const int64_t wide = std::min<int64_t>(kWide, count - i);
        Vector some = {};
        std::memcpy(&some, y + i, wide * sizeof(float));
        some = Activate(part.activation, some);
        std::memcpy(y + i, &some, wide * sizeof(float));
      }
    }
  });
}

// The same with more rows. The rows of x make the panels, turned [K, kPanel] once, and every row of
// w passes them: a few rows of w pass all panels while they are near, and in each pass a part of
// those behind them is fetched, so that memory is read all the time, and never waited for.
void ManyRows(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t depth,
              const std::function<const Part&(int64_t*)>& part_of, int64_t pieces) {
  constexpr int64_t kBlock = 256;
  const int64_t panels = (rows + kPanel - 1) / kPanel, blocks = (depth + kBlock - 1) / kBlock;
  thread_local Floats scratch;  // kept, so that it need not be made anew, and cleared, each time
  scratch.resize(std::max<size_t>(scratch.size(), panels * depth * kPanel));
  float* turned = scratch.data();
  auto rows_of = [&](int64_t panel) { return std::min<int64_t>(kPanel, rows - panel * kPanel); };
  auto width_of = [&](int64_t panel) { return rows_of(panel) > kWide ? kPanel : kWide; };
  auto turn = [&](int64_t piece) {
    const int64_t p = piece / blocks, k = piece % blocks * kBlock, width = width_of(p);
    (width == kPanel ? Turn<kPanel> : Turn<kWide>)(
        x + p * kPanel * depth + k, depth, rows_of(p), std::min(kBlock, depth - k),
        turned + p * depth * kPanel + k * width);
  };
  if (rows * depth < (1 << 15)) {  // done before another thread has begun
    for (int64_t piece = 0; piece < panels * blocks; ++piece) turn(piece);
  } else {
    Share(pool, panels * blocks, turn);
  }
  Share(pool, pieces, [&](int64_t piece) {
    int64_t first = piece;
    const Part& part = part_of(&first);
    const int64_t last = std::min(part.outputs, first + kPiece);
    alignas(64) float tile[kTall * kPanel];
    for (int64_t n = first; n < last; n += kTall) {
      const int64_t count = std::min<int64_t>(kTall, last - n);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t from = kTall * p / panels, to = kTall * (p + 1) / panels;
        const int64_t width = width_of(p);
        (width == kPanel ? TileOf<2, kTall> : TileOf<1, kTall>)(
            count, part.w + n * depth, depth, turned + p * depth * kPanel, depth, tile,
            part.w + (n + kTall + from) * depth, to - from);
        (width == kPanel ? Put<kPanel> : Put<kWide>)(
            part, n, tile, count, rows_of(p), part.y + p * kPanel * part.outputs);
      }
    }
  });
}

// One x [M, K] times each of several kernels, turned [N, K], plus its bias [N], or [0] for none; and
// an activation of that.
ffi::Error Products(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::RemainingArgs weights,
                    int64_t activation, ffi::RemainingRets outs) {
  const int64_t rows = x.dimensions()[0], depth = x.dimensions()[1];
  std::vector<Part> parts(outs.size());
  std::vector<int64_t> begin(outs.size() + 1, 0);  // of each part's pieces
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto w = *weights.get<ffi::Buffer<ffi::F32>>(2 * i);
    const auto bias = *weights.get<ffi::Buffer<ffi::F32>>(2 * i + 1);
    auto y = *outs.get<ffi::Buffer<ffi::F32>>(i);
    const int64_t outputs = w.dimensions()[0];
    parts[i] = {w.typed_data(), bias.element_count() ? bias.typed_data() : nullptr, outputs,
                static_cast<Activation>(activation), y->typed_data()};
    begin[i + 1] = begin[i] + (outputs + kPiece - 1) / kPiece;
  }
  // Of the place of a piece among all, its part, and the first of the part's rows that is in it.
  auto part_of = [&](int64_t* place) -> const Part& {
    size_t i = 0;
    while (*place >= begin[i + 1]) ++i;
    *place = (*place - begin[i]) * kPiece;
    return parts[i];
  };
  (rows <= kFew ? FewRows : ManyRows)(pool, x.typed_data(), rows, depth, part_of, begin.back());
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

// query . keys[seen[r]] for kWide slots.
inline Vector Scores(const float* query, const float* keys, const int32_t* seen, int64_t dim,
                     int64_t ahead) {
  Vector sum[kWide] = {};
  const float* key[kWide];
  for (int r = 0; r < kWide; ++r) key[r] = keys + seen[r] * dim;
  int64_t d = 0;
  for (; d + kWide <= dim; d += kWide) {
    const Vector q = Load(query + d);
#pragma GCC unroll 16
    for (int r = 0; r < kWide; ++r) sum[r] += q * Load(key[r] + d);
    if (ahead) {
#pragma GCC unroll 16
      for (int r = 0; r < kWide; ++r) __builtin_prefetch(key[r] + ahead + d, 0, 2);
    }
  }
  Vector score = SumEach(sum);
  if (d < dim) {
    for (int r = 0; r < kWide; ++r) {
      for (int64_t i = d; i < dim; ++i) score[r] += query[i] * key[r][i];
    }
  }
  return score;
}

// One query over `count` slots of one head: weight is scratch and seen is readable up to a multiple
// of kWide, mixed [dim] the result.
// Meanwhile the same slots of the head that lies `ahead` numbers further on are fetched.
void Attend(const float* query, const float* keys, const float* values, const int32_t* seen,
            int64_t count, int64_t dim, float scale, float* weight, float* mixed, int64_t ahead) {
  const int64_t whole = (count + kWide - 1) / kWide * kWide;
  for (int64_t i = 0; i < whole; i += kWide) {
    Vector score = Scores(query, keys, seen + i, dim, ahead) * scale;
    Store(weight + i, score);
  }
  std::fill(weight + count, weight + whole, -INFINITY);
  Vector highest = Vector{} - INFINITY;
  for (int64_t i = 0; i < whole; i += kWide) highest = Larger(highest, Load(weight + i));
  const float top = Largest(highest);
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
    thread_local Floats weight;  // kept, so that pieces need not ask for memory
    thread_local std::vector<int32_t> seen;
    weight.resize(std::max<size_t>(weight.size(), slots + kWide));
    seen.resize(std::max<size_t>(seen.size(), slots + kWide));
    for (int64_t t = 0; t < length; ++t) {
      const int32_t segment = asked[b * length + t];
      const int64_t own = std::min(first[b] + t, slots - 1);
      int64_t count = 0;
      if (segment != 0) {  // padding and rows that have ended: nobody reads what they see
        for (int64_t s = std::max<int64_t>(0, first[b] + t - window + 1); s <= own; ++s) {
          if (kept[b * slots + s] == segment) seen[count++] = s;
        }
      }
      std::fill_n(seen.data() + count, kWide, count ? seen[count - 1] : 0);
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

constexpr int64_t kBlock = 64;  // of the vocabulary: first a block is drawn, then a token in it

// The first index where the running sum of `count` weights passes `share` of their sum; where
// rounding leaves none, the last weight that is not 0.
int64_t Invert(const float* weight, int64_t count, float share) {
  float total = 0;
  for (int64_t i = 0; i < count; ++i) total += weight[i];
  float running = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    running += weight[i];
    if (weight[i] > 0) {
      last = i;
      if (running > share * total) break;
    }
  }
  return last;
}

// weight[i] = e^((logits[i] - top) / temperature), and behind `vocab` zeros up to a whole block.
void Weigh(const float* logits, int64_t vocab, float top, float temperature, float* weight) {
  const float inverse = 1.0f / temperature;
  int64_t i = 0;
  for (; i + kWide <= vocab; i += kWide) Store(weight + i, Exp((Load(logits + i) - top) * inverse));
  const int64_t whole = (vocab + kBlock - 1) / kBlock * kBlock;
  for (; i < whole; i += kWide) {
    Vector rest = Vector{} - INFINITY;
    if (i < vocab) std::memcpy(&rest, logits + i, (vocab - i) * sizeof(float));
    Store(weight + i, Exp((rest - top) * inverse));
  }
}

float Top(const float* logits, int64_t vocab) {
  Vector highest = Vector{} - INFINITY;
  int64_t i = 0;
  for (; i + kWide <= vocab; i += kWide) highest = Larger(highest, Load(logits + i));
  float top = Largest(highest);
  for (; i < vocab; ++i) top = std::max(top, logits[i]);
  return top;
}

// sum[b] = the sum of the weights of block b; returns the sum of all.
float SumBlocks(const float* weight, int64_t blocks, float* sum) {
  float total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    Vector block = {};
    for (int64_t i = 0; i < kBlock; i += kWide) block += Load(weight + b * kBlock + i);
    total += sum[b] = Sum(block);
  }
  return total;
}

// Of each row of `allowed` [N, V] an index drawn by two numbers of `noise` [N, 2] in [0, 1), and its
// log-prob among all `logits` [N, V], both at `temperature` [N]; see drawing.py.
ffi::Error Draw(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::Buffer<ffi::F32> allowed,
                ffi::Buffer<ffi::F32> noise, ffi::Buffer<ffi::F32> temperature,
                ffi::ResultBuffer<ffi::S32> token, ffi::ResultBuffer<ffi::F32> logp) {
  const int64_t rows = logits.dimensions()[0], vocab = logits.dimensions()[1];
  const int64_t blocks = (vocab + kBlock - 1) / kBlock;
  Share(pool, rows, [&](int64_t row) {
    const float* all = logits.typed_data() + row * vocab;
    const float* some = allowed.typed_data() + row * vocab;
    const float* u = noise.typed_data() + 2 * row;
    const float own = temperature.typed_data()[row];
    thread_local Floats scratch;
    scratch.resize(std::max<size_t>(scratch.size(), blocks * (kBlock + 1)));
    float *weight = scratch.data(), *sum = weight + blocks * kBlock;
    const float top = Top(all, vocab);
    Weigh(all, vocab, top, own, weight);
    const float total = SumBlocks(weight, blocks, sum);
    if (some != all) {
      Weigh(some, vocab, top, own, weight);
      SumBlocks(weight, blocks, sum);
    }
    const int64_t block = Invert(sum, blocks, u[0]);
    const int64_t chosen = block * kBlock + Invert(weight + block * kBlock, kBlock, u[1]);
    token->typed_data()[row] = chosen;
    logp->typed_data()[row] = (all[chosen] - top) / own - std::log(total);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_products, Products,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("activation")
                                  .RemainingRets());

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(aludel_draw, Draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
