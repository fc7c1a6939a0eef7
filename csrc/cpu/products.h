// What attention kernels are made of: exp, transposes, tiles converted to the accumulation type, and two matrix products
// on tiles that lie in the cache. Everything here works on whole vectors: rows are padded to kLanes elements at least.
#pragma once

#include "vec.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE int64_t products_padded(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

// exp: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r (interpolation at Chebyshev nodes, relative error 1e-8 in
// float and 2e-17 in double), times 2^n. Exactly zero near the smallest normal number, infinite from 2^127.5 on, NaN for
// NaN. Adding 1.5 * 2^mantissa rounds to an integer, which then stands in the low bits.
MIXSYN_INLINE Vec<float> products_exp(Vec<float> x) {
  const Vec<float> shifted = x * 1.44269504f + 12582912.0f;
  const Vec<float> n = shifted - 12582912.0f;
  const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.42860682e-6f;
  Vec<float> q = splat<float>(0.00139262133f);
  q = q * r + 0.00836320297f;
  q = q * r + 0.0416665544f;
  q = q * r + 0.166665768f;
  q = q * r + 0.5f;
  q = (q * r) * r + r;
  // unsigned: far outside the range, where the result is replaced, the sum wraps
  const Vec<float> power = bits_of<Vec<float>>((bits_of<Words>(shifted) << 23) + 0x3f800000u);
  Vec<float> y = q * power + power;
  y = x < -87.0f ? Vec<float>{} : y;
  return x > 88.37f ? splat<float>(__builtin_inff()) : y;
}
MIXSYN_INLINE Vec<double> products_exp(Vec<double> x) {
  const Vec<double> shifted = x * 1.442695040888963407 + 6755399441055744.0;
  const Vec<double> n = shifted - 6755399441055744.0;
  const Vec<double> r = (x - n * 0.6931471805592082091607153) - n * 7.37100256516779890e-13;
  Vec<double> q = splat<double>(2.5100424157005066788e-8);
  q = q * r + 2.7620138719733995569e-7;
  q = q * r + 2.7557268378684192873e-6;
  q = q * r + 2.4801521190217727651e-5;
  q = q * r + 1.9841269863105968748e-4;
  q = q * r + 1.3888888917281793308e-3;
  q = q * r + 8.3333333333300513464e-3;
  q = q * r + 0.041666666666623991516;
  q = q * r + 0.16666666666666667456;
  q = q * r + 0.5;
  q = (q * r) * r + r;
  const Vec<double> power = bits_of<Vec<double>>((bits_of<Longs>(shifted) << 52) + 0x3ff0000000000000u);
  Vec<double> y = q * power + power;
  y = x < -708.0 ? Vec<double>{} : y;
  return x > 709.43 ? splat<double>(__builtin_inf()) : y;
}

// to[c][r] = from[r][c] for whole vectors in both directions.
template <typename A>
void transpose_tile(const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t rows, int64_t columns) {
  constexpr int L = kLanes<A>;
  for (int64_t r0 = 0; r0 < rows; r0 += L)
    for (int64_t c0 = 0; c0 < columns; c0 += L) {
      const A* source = from + r0 * from_stride + c0;
      A* target = to + c0 * to_stride + r0;
      Vec<A> v[L];
      MIXSYN_UNROLL
      for (int i = 0; i < L; ++i) v[i] = load(source + i * from_stride);
      transpose<A>(v);
      MIXSYN_UNROLL
      for (int i = 0; i < L; ++i) store(target + i * to_stride, v[i]);
    }
}

// ------------------------------------------------------------------------------------------------ tiles in and out

// rows x columns elements of T into rows of A padded with zeros to whole vectors.
template <typename T, typename A>
void load_tile(const T* from, int64_t from_stride, A* to, int64_t to_stride, int64_t rows, int64_t columns) {
  constexpr int L = kLanes<A>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = from + r * from_stride;
    A* target = to + r * to_stride;
    int64_t c = 0;
    for (; c + L <= columns; c += L) store(target + c, load(source + c));
    if (c < columns) store(target + c, load_n(source + c, columns - c));
  }
}

// The reverse: rows of A, of which `columns` elements count, to T.
template <typename T, typename A>
void store_tile(const A* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  constexpr int L = kLanes<A>;
  for (int64_t r = 0; r < rows; ++r) {
    const A* source = from + r * from_stride;
    T* target = to + r * to_stride;
    int64_t c = 0;
    for (; c + L <= columns; c += L) store(target + c, load(source + c));
    if (c < columns) store_n(target + c, load(source + c), columns - c);
  }
}

// sums[r] += the columns of row r, lane by lane in the first vector of a line.
template <typename A>
void add_row_lanes(const A* tile, int64_t stride, int64_t rows, int64_t columns, A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t r = 0; r < rows; ++r) {
    Vec<A> sum = {};
    for (int64_t c = 0; c < columns; c += L) sum += load(tile + r * stride + c);
    store(sums + r * kLine<A>, load(sums + r * kLine<A>) + sum);
  }
}

// sums[c] += column c.
template <typename A, int V>
MIXSYN_INLINE void add_columns_block(const A* tile, int64_t stride, int64_t rows, A* sums) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[V] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < V; ++v) sum[v] += load(tile + r * stride + v * L);
  for (int v = 0; v < V; ++v) store(sums + v * L, load(sums + v * L) + sum[v]);
}
template <typename A>
void add_columns(const A* tile, int64_t stride, int64_t rows, int64_t columns, A* sums) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= columns; c += 4 * L) add_columns_block<A, 4>(tile + c, stride, rows, sums + c);
  for (; c < columns; c += L) add_columns_block<A, 1>(tile + c, stride, rows, sums + c);
}

// Lines of the next tile, asked for a few at a time between the register blocks of this one, so that memory and arithmetic
// overlap; hardware does not follow so many rows at once. Up to two blocks of rows.
struct Ahead {
  static constexpr int64_t kLines = 96;  // per register block
  const char* from[2] = {nullptr, nullptr};
  int64_t stride[2] = {0, 0}, rows[2] = {0, 0}, bytes[2] = {0, 0};
  int64_t which = 0, row = 0, at = 0;
};

template <typename T>
MIXSYN_INLINE void ahead_set(Ahead& a, int which, const T* from, int64_t stride, int64_t rows, int64_t columns) {
  a.from[which] = reinterpret_cast<const char*>(from);
  a.stride[which] = stride * static_cast<int64_t>(sizeof(T));
  a.bytes[which] = columns * static_cast<int64_t>(sizeof(T));
  a.rows[which] = columns > 0 ? rows : 0;
}

MIXSYN_INLINE void ahead_fetch(Ahead* a) {
  if (!a) return;
  for (int64_t left = Ahead::kLines; left > 0 && a->which < 2;) {
    if (a->row == a->rows[a->which]) {
      ++a->which, a->row = 0, a->at = 0;
      continue;
    }
    const char* from = a->from[a->which] + a->row * a->stride[a->which];
    const int64_t end = a->at + left * 64 < a->bytes[a->which] ? a->at + left * 64 : a->bytes[a->which];
    int64_t at = a->at;
    for (; at < end; at += 64, --left) __builtin_prefetch(from + at, 0, 2);
    a->at = at;
    if (at >= a->bytes[a->which]) a->at = 0, ++a->row;
  }
}

// ------------------------------------------------------------------------------------------------------ products

// What becomes of the sums, to which row[column] is added where a row is given: out = sums, the same past the caches,
// out += sums, out = out * row[column] + sums.
enum class Product { kSet, kStream, kAdd, kScale };

// out[r][j] from sum_i x[r][i] w[i][j] for R rows and V vectors of columns, kept in registers. x is broadcast.
template <typename A, int R, int V, Product MODE>
MIXSYN_BLOCK void product_block(const A* x, int64_t xs, const A* w, int64_t ws, int64_t inner, const A* row, A* out,
                                int64_t os) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[R][V];
  MIXSYN_UNROLL
  for (int r = 0; r < R; ++r) MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) sum[r][v] = Vec<A>{};
  constexpr int kBases = (R + 3) / 4;  // pointers to every fourth row: with one per row the loop runs out of registers
  const A* base[kBases];
  MIXSYN_UNROLL
  for (int b = 0; b < kBases; ++b) base[b] = x + 4 * b * xs;
  for (int64_t i = 0; i < inner; ++i) {
    Vec<A> column[V];
    MIXSYN_UNROLL
    for (int v = 0; v < V; ++v) column[v] = load(w + v * L);
    w += ws;
    MIXSYN_UNROLL
    for (int r = 0; r < R; ++r) {
      const A value = base[r / 4][(r % 4) * xs];
      if (r % 4 == 3 || r == R - 1) ++base[r / 4];
      MIXSYN_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] += value * column[v];
    }
  }
  MIXSYN_UNROLL
  for (int r = 0; r < R; ++r) MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) {
    A* to = out + r * os + v * L;
    if (MODE != Product::kScale && row) sum[r][v] += load(row + v * L);
    if (MODE == Product::kAdd) sum[r][v] = load(to) + sum[r][v];
    if (MODE == Product::kScale) sum[r][v] = load(to) * load(row + v * L) + sum[r][v];
    MODE == Product::kStream ? stream(to, sum[r][v]) : store(to, sum[r][v]);
  }
}

template <typename A, int R, int V, Product MODE>
MIXSYN_INLINE int64_t product_rows(const A* x, int64_t xs, const A* w, int64_t ws, int64_t inner, const A* row, A* out,
                                   int64_t os, int64_t begin, int64_t end, Ahead* ahead) {
  int64_t r = begin;
  for (; r + R <= end; r += R) {
    ahead_fetch(ahead);
    product_block<A, R, V, MODE>(x + r * xs, xs, w, ws, inner, row, out + r * os, os);
  }
  return r;
}

// V vectors of columns for all rows: blocks of the height that fills the registers, then lower ones for what is left.
template <typename A, int V, Product MODE>
MIXSYN_INLINE void product_columns(const A* x, int64_t xs, const A* w, int64_t ws, int64_t inner, const A* row, A* out,
                                   int64_t os, int64_t begin, int64_t end, Ahead* ahead) {
  constexpr int R = V == 1 ? MIXSYN_PRODUCT_TALL : MIXSYN_PRODUCT_ROWS;
  int64_t r = product_rows<A, R, V, MODE>(x, xs, w, ws, inner, row, out, os, begin, end, ahead);
  if constexpr (R > 8) r = product_rows<A, 8, V, MODE>(x, xs, w, ws, inner, row, out, os, r, end, ahead);
  if constexpr (R > 4) r = product_rows<A, 4, V, MODE>(x, xs, w, ws, inner, row, out, os, r, end, ahead);
  product_rows<A, 1, V, MODE>(x, xs, w, ws, inner, row, out, os, r, end, ahead);
}

// Terms that are summed one after the other before their sum joins the rest: the rounding of a sum of n terms grows with n.
constexpr int64_t kProductPanel = 64;

// out (rows, columns) from x (rows, inner) w (inner, columns); columns in whole vectors. Every element is summed over i in
// the same order, whatever the blocks are: the same numbers come out of a product of more rows or more columns.
template <typename A, Product MODE>
void product(const A* x, int64_t xs, const A* w, int64_t ws, int64_t inner, const A* row, A* out, int64_t os,
             int64_t rows, int64_t columns, Ahead* ahead = nullptr) {
  constexpr int L = kLanes<A>;
  if constexpr (MODE == Product::kSet || MODE == Product::kAdd) {
    if (inner > kProductPanel) {
      product<A, MODE>(x, xs, w, ws, kProductPanel, row, out, os, rows, columns, ahead);
      for (int64_t i = kProductPanel; i < inner; i += kProductPanel) {
        const int64_t n = inner - i < kProductPanel ? inner - i : kProductPanel;
        product<A, Product::kAdd>(x + i, xs, w + i * ws, ws, n, nullptr, out, os, rows, columns, ahead);
      }
      return;
    }
  }
  // w stays in the first-level cache: all of it while blocks of rows pass, or a panel of columns while all rows pass
  const int64_t block = inner * columns * static_cast<int64_t>(sizeof(A)) <= 32768 ? 16 : rows;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    const int64_t r1 = r0 + block < rows ? r0 + block : rows;
    constexpr int V = MIXSYN_PRODUCT_VECTORS;
    int64_t c = 0;
    for (; c + V * L <= columns; c += V * L)
      product_columns<A, V, MODE>(x, xs, w + c, ws, inner, row ? row + c : row, out + c, os, r0, r1, ahead);
    for (; c < columns; c += L)
      product_columns<A, 1, MODE>(x, xs, w + c, ws, inner, row ? row + c : row, out + c, os, r0, r1, ahead);
  }
}

constexpr int64_t kLargeProduct = 8 << 20;

// A product whose result, (rows, columns) of T, goes to memory: full vectors of the accumulation type to their place, others
// through a buffer. `size` counts the elements of the whole result, of which this is a tile.
template <typename T, typename A>
MIXSYN_INLINE void product_into(const A* x, int64_t xs, const A* w, int64_t ws, int64_t inner, const A* row, A* buffer,
                                int64_t stride, T* to, int64_t to_stride, int64_t rows, int64_t columns, int64_t size,
                                Ahead* ahead) {
  if constexpr (std::is_same_v<T, A>) {
    if (columns % kLanes<A> == 0) {
      streams(to, to_stride, size, kLargeProduct)
          ? product<A, Product::kStream>(x, xs, w, ws, inner, row, to, to_stride, rows, columns, ahead)
          : product<A, Product::kSet>(x, xs, w, ws, inner, row, to, to_stride, rows, columns, ahead);
      return;
    }
  }
  product<A, Product::kSet>(x, xs, w, ws, inner, row, buffer, stride, rows, products_padded(columns, kLanes<A>), ahead);
  store_tile<T, A>(buffer, stride, to, to_stride, rows, columns);
}

// out[i][j] = out[i][j] * scale[i] + sum_p x[p][i] y[p][j] for I rows of out and V vectors (scale null: 1).
template <typename A, int I, int V>
MIXSYN_BLOCK void outer_block(const A* x, int64_t xs, const A* y, int64_t ys, int64_t count, const A* scale, A* out,
                              int64_t os) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[I][V];
  MIXSYN_UNROLL
  for (int i = 0; i < I; ++i) MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) sum[i][v] = Vec<A>{};
  for (int64_t p = 0; p < count; ++p) {
    Vec<A> value[V];
    MIXSYN_UNROLL
    for (int v = 0; v < V; ++v) value[v] = load(y + p * ys + v * L);
    MIXSYN_UNROLL
    for (int i = 0; i < I; ++i) {
      const A factor = x[p * xs + i];
      MIXSYN_UNROLL
      for (int v = 0; v < V; ++v) sum[i][v] += factor * value[v];
    }
  }
  MIXSYN_UNROLL
  for (int i = 0; i < I; ++i) MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) {
    A* to = out + i * os + v * L;
    store(to, scale ? load(to) * scale[i] + sum[i][v] : load(to) + sum[i][v]);
  }
}

template <typename A, int I>
MIXSYN_INLINE int64_t outer_rows(const A* x, int64_t xs, const A* y, int64_t ys, int64_t count, const A* scale, A* out,
                                 int64_t os, int64_t i, int64_t rows, int64_t columns, Ahead* ahead) {
  constexpr int L = kLanes<A>, V = MIXSYN_PRODUCT_VECTORS;
  for (; i + I <= rows; i += I) {
    const A* factor = scale ? scale + i : scale;
    int64_t c = 0;
    for (; c + V * L <= columns; c += V * L) {
      ahead_fetch(ahead);
      outer_block<A, I, V>(x + i, xs, y + c, ys, count, factor, out + i * os + c, os);
    }
    for (; c < columns; c += L) outer_block<A, I, 1>(x + i, xs, y + c, ys, count, factor, out + i * os + c, os);
  }
  return i;
}

// out (rows, columns) = scale * out + x^T y with x (count, rows), y (count, columns); columns in whole vectors.
template <typename A>
void outer_product(const A* x, int64_t xs, const A* y, int64_t ys, int64_t count, const A* scale, A* out, int64_t os,
                   int64_t rows, int64_t columns, Ahead* ahead = nullptr) {
  int64_t i = outer_rows<A, MIXSYN_PRODUCT_ROWS>(x, xs, y, ys, count, scale, out, os, 0, rows, columns, ahead);
  if (MIXSYN_PRODUCT_ROWS > 4) i = outer_rows<A, 4>(x, xs, y, ys, count, scale, out, os, i, rows, columns, ahead);
  outer_rows<A, 1>(x, xs, y, ys, count, scale, out, os, i, rows, columns, ahead);
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
