// What the kernels for CPUs share: vectors as wide as the machine's, tiles of a product that stay
// in registers, and work shared out over XLA's own threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace native {

// A tile is kTall rows by kPanel = 2 * kWide columns: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kWide = 16, kTall = 12;
#elif defined(__AVX__)
constexpr int kWide = 8, kTall = 6;
#else
constexpr int kWide = 4, kTall = 6;
#endif
constexpr int kPanel = 2 * kWide;

typedef float Vector __attribute__((vector_size(kWide * sizeof(float))));
typedef int32_t Whole __attribute__((vector_size(kWide * sizeof(int32_t))));

// Numbers that begin where a cache line does: a vector that lies in two lines is read twice.
template <typename T>
struct Aligned {
  typedef T value_type;
  Aligned() = default;
  template <typename U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)));
  }
  void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t(64)); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
typedef std::vector<float, Aligned<float>> Floats;

inline Vector Load(const float* at) {
  Vector v;
  std::memcpy(&v, at, sizeof(v));
  return v;
}

inline void Store(float* at, Vector v) { std::memcpy(at, &v, sizeof(v)); }

// Halves are added to halves: one value after another would be waited for as many times.
inline float Sum(Vector v) {
  float part[kWide];
  Store(part, v);
  for (int half = kWide / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) part[i] += part[half + i];
  }
  return part[0];
}

// x and y with each half's elements added to those `kHalf` away: where the lane has that bit, y's.
template <int kHalf, size_t... kLane>
inline Vector AddHalves(Vector x, Vector y, std::index_sequence<kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, (kLane & kHalf ? kWide + kLane : kLane)...) +
         __builtin_shufflevector(x, y, (kLane & kHalf ? kWide + (kLane ^ kHalf) : kLane ^ kHalf)...);
#else
  const Whole own = {static_cast<int32_t>(kLane & kHalf ? kWide + kLane : kLane)...};
  const Whole far = {static_cast<int32_t>(kLane & kHalf ? kWide + (kLane ^ kHalf) : kLane ^ kHalf)...};
  return __builtin_shuffle(x, y, own) + __builtin_shuffle(x, y, far);
#endif
}

// Of the lanes with that bit, x's partners in y; of the others, y's partners in x: a step of a
// transpose.
template <int kHalf, size_t... kLane>
inline void SwapHalves(Vector& x, Vector& y, std::index_sequence<kLane...>) {
#if defined(__clang__)
  const Vector low = __builtin_shufflevector(
      x, y, (kLane & kHalf ? kWide + (kLane ^ kHalf) : kLane)...);
  y = __builtin_shufflevector(x, y, (kLane & kHalf ? kWide + kLane : kLane ^ kHalf)...);
#else
  const Whole of_x = {static_cast<int32_t>(kLane & kHalf ? kWide + (kLane ^ kHalf) : kLane)...};
  const Whole of_y = {static_cast<int32_t>(kLane & kHalf ? kWide + kLane : kLane ^ kHalf)...};
  const Vector low = __builtin_shuffle(x, y, of_x);
  y = __builtin_shuffle(x, y, of_y);
#endif
  x = low;
}

// The kWide x kWide matrix whose rows are v, transposed in place.
template <int kHalf = kWide / 2>
inline void Transpose(Vector* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kWide; ++i) {
    if (!(i & kHalf)) {
      SwapHalves<kHalf>(v[i], v[i + kHalf], std::make_index_sequence<kWide>());
    }
  }
  if constexpr (kHalf > 1) Transpose<kHalf / 2>(v);
}

// {Sum(v[0]), Sum(v[1]), ...}, all at once; v is used up.
template <int kHalf = kWide / 2>
inline Vector SumEach(Vector* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
    v[i] = AddHalves<kHalf>(v[i], v[i + kHalf], std::make_index_sequence<kWide>());
  }
  if constexpr (kHalf > 1) return SumEach<kHalf / 2>(v);
  return v[0];
}

inline Vector Larger(Vector a, Vector b) { return a > b ? a : b; }

inline float Largest(Vector v) {
  float top = v[0];
  for (int i = 1; i < kWide; ++i) top = std::max(top, v[i]);
  return top;
}

// e^x to about one unit in the last place, and 0 below e^-87 (Cephes' expf: 2^k times a polynomial
// on [-ln 2 / 2, ln 2 / 2]).
inline Vector Exp(Vector x) {
  const Vector least = Vector{} - 87.0f;
  const Vector in = Larger(x, least);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector k = (in * 1.44269504f + magic) - magic;
  const Vector f = in - k * 0.693359375f - k * -2.12194440e-4f;
  Vector p = Vector{} + 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Whole bits = (__builtin_convertvector(k, Whole) + 127) << 23;
  Vector power;
  std::memcpy(&power, &bits, sizeof(power));
  return x > least ? p * power : Vector{};
}

// out[r][0 ... kPanel) (+)= sum over k of left[r * left_row + k * left_step] * right[k][...].
template <int kRows, bool kAdd>
inline void Tile(const float* left, int64_t left_row, int64_t left_step, const float* right,
                 int64_t right_row, int64_t depth, float* out, int64_t out_row) {
  Vector a[kRows], b[kRows];
  for (int r = 0; r < kRows; ++r) a[r] = b[r] = Vector{};
  // A pointer for three rows, which one register of their distance reaches: with one for each there
  // are too few registers.
  constexpr int kThirds = (kRows + 2) / 3;
  const float* at[kThirds];
  for (int third = 0; third < kThirds; ++third) at[third] = left + 3 * third * left_row;
  for (int64_t k = 0; k < depth; ++k) {
    const Vector x = Load(right + k * right_row), y = Load(right + k * right_row + kWide);
    for (int r = 0; r < kRows; ++r) {
      const float value = at[r / 3][r % 3 * left_row];
      a[r] += value * x;
      b[r] += value * y;
    }
    for (int third = 0; third < kThirds; ++third) at[third] += left_step;
  }
  for (int r = 0; r < kRows; ++r) {
    float* to = out + r * out_row;
    Store(to, kAdd ? Load(to) + a[r] : a[r]);
    Store(to + kWide, kAdd ? Load(to + kWide) + b[r] : b[r]);
  }
}

template <int kRows, bool kAdd>
inline void Tiles(int64_t rows, const float* left, int64_t left_row, int64_t left_step,
                  const float* right, int64_t right_row, int64_t depth, float* out,
                  int64_t out_row) {
  if constexpr (kRows > 0) {
    for (; rows >= kRows; rows -= kRows, left += kRows * left_row, out += kRows * out_row) {
      Tile<kRows, kAdd>(left, left_row, left_step, right, right_row, depth, out, out_row);
    }
    Tiles<kRows - 1, kAdd>(rows, left, left_row, left_step, right, right_row, depth, out, out_row);
  }
}

// out [rows, columns] (+)= left [rows, depth] @ right [depth, columns], small enough for the
// nearest caches. `columns` is a multiple of kPanel; left may be a transposed view.
template <bool kAdd>
inline void Multiply(int64_t rows, int64_t columns, int64_t depth, const float* left,
                     int64_t left_row, int64_t left_step, const float* right, int64_t right_row,
                     float* out, int64_t out_row) {
  for (int64_t c = 0; c < columns; c += kPanel) {
    Tiles<kTall, kAdd>(rows, left, left_row, left_step, right + c, right_row, depth, out + c,
                       out_row);
  }
}

// A helper that is done waits a moment for the next job before it goes back to XLA's pool: to wake
// a thread that sleeps takes longer than a small product. Who has a job looks into the boxes first.
using Job = std::function<void()>;
struct alignas(64) Box {
  std::atomic<Job*> job{nullptr};  // nullptr: nobody waits here
};
inline Box boxes[16];
inline Job waiting;  // only its address is used: somebody waits here
constexpr auto kMoment = std::chrono::microseconds(50);

// Gives the job to a helper that waits, or returns false.
inline bool HandOver(Job* job) {
  for (Box& box : boxes) {
    Job* expected = &waiting;
    if (box.job.compare_exchange_strong(expected, job)) return true;
  }
  return false;
}

// The next job, or nullptr when the moment is over or no box is free.
inline Job* NextJob() {
  for (Box& box : boxes) {
    Job* expected = nullptr;
    if (!box.job.compare_exchange_strong(expected, &waiting)) continue;
    const auto end = std::chrono::steady_clock::now() + kMoment;
    while (box.job.load(std::memory_order_acquire) == &waiting) {
      if (std::chrono::steady_clock::now() < end) continue;
      expected = &waiting;
      if (box.job.compare_exchange_strong(expected, nullptr)) return nullptr;
    }
    return box.job.exchange(nullptr);
  }
  return nullptr;
}

inline void Help(Job* job) {
  for (; job; job = NextJob()) {
    (*job)();
    delete job;
  }
}

// Runs body(0) ... body(count - 1) on this thread and on those of the pool that are free. Each
// thread begins at a place of its own and goes on from there in order, so that what the next piece
// reads can be fetched ahead; when its stretch is done it helps with the others. A helper that
// comes late finds nothing left to take, so that nobody waits for a thread that never starts.
inline void Share(xla::ffi::ThreadPool& pool, int64_t count,
                  const std::function<void(int64_t)>& body) {
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct State {
    std::unique_ptr<Stretch[]> stretches;
    std::atomic<int64_t> done{0};
  };
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), count));
  auto state = std::make_shared<State>();
  state->stretches.reset(new Stretch[threads]);
  for (int64_t t = 0; t < threads; ++t) {
    state->stretches[t].next = count * t / threads;
    state->stretches[t].end = count * (t + 1) / threads;
  }
  const std::function<void(int64_t)>* work = &body;  // alive until all that was taken is done
  auto take = [state, threads, work](int64_t own) {
    for (int64_t t = 0; t < threads; ++t) {
      Stretch& stretch = state->stretches[(own + t) % threads];
      for (int64_t i; (i = stretch.next.fetch_add(1)) < stretch.end;) {
        (*work)(i);
        state->done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  for (int64_t t = 1; t < threads; ++t) {
    Job* job = new Job([take, t] { take(t); });
    if (!HandOver(job)) pool.Schedule([job] { Help(job); });
  }
  take(0);
  for (int spins = 0; state->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins > 2000) std::this_thread::yield();
  }
}

}  // namespace native
