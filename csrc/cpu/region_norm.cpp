// CPU kernels of region_norm; isa.h says how they are compiled.
//
// Layouts: channels_last ("tiles", "pixels", "chunks": channels are the vector) and contiguous ("planes": pixels are the
// vector, a block of pixels that all lie in one row of the table broadcasts it, others gather).
#include "region_norm.h"

#include "silu.h"
#include "vec.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// The value that enters the modulation: (x + noise * noise_scale - mean) * rstd.
template <bool NOISE, typename V>
MIXSYN_INLINE V normalised(V x, V noise, V noise_scale, V mean, V rstd) {
  if constexpr (NOISE) x = x + noise * noise_scale;
  return (x - mean) * rstd;
}

// Of vectors: LeakyReLU, of which slope 1 leaves the value as it is, or SiLU.
template <bool SILU, typename V>
MIXSYN_INLINE V activated(V value, V slope) {
  if constexpr (SILU) return silu(value);
  return value > 0 ? value : value * slope;
}

// The gradient before the activation, from that after it.
template <bool SILU, typename V>
MIXSYN_INLINE V before_activation(V grad, V value, V slope) {
  if constexpr (SILU) return grad * silu_slope(value);
  return value > 0 ? grad : grad * slope;
}

// One row of the table for all pixels of an image, and no noise: norms of other models.
template <typename T, typename A>
MIXSYN_INLINE bool is_even(const RegionNorm<T, A>& a) {
  return !a.scale && !a.index && !a.noise;
}

// ---------------------------------------------------------------------------------------------- channels_last

// Channels of a pixel that come up soon: the hardware does not follow so many rows that lie far apart.
template <typename T, int N>
MIXSYN_INLINE void prefetch_channels(const T* x) {
  for (int i = 0; i < N * static_cast<int>(sizeof(T)); i += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(x) + i, 0, 2);
}

// The row of the table that a pixel needs, n channels from c on: where regions meet, every pixel has another.
template <typename T, typename A>
MIXSYN_INLINE void prefetch_row(const RegionNorm<T, A>& a, int64_t pixel, int64_t c, int64_t n) {
  const A* row = a.table + static_cast<int64_t>(a.index[pixel]) * 2 * a.channels + c;
  for (int64_t i = 0; i < n; i += kLine<A>) __builtin_prefetch(row + i), __builtin_prefetch(row + a.channels + i);
}

// Vectors of channels that a statistics pass holds in registers: their means, and their sums of squares.
constexpr int kStatsVectors = 4;
constexpr int64_t kStatsBlock = 32;  // pixels between the two passes

// Mean and M2 of `done` pixels of some channels, and then of the pixels [q0, q1) as well. Two passes over a block that stays
// in the first-level cache, merged with what was there (Chan, Golub, LeVeque): never E[x^2] - m^2.
template <typename T, typename A, bool FULL, bool NOISE>
MIXSYN_INLINE void stats_block(const RegionNorm<T, A>& a, A* mean_out, A* m2_out, int64_t done, int64_t q0, int64_t q1,
                               int64_t c0, int64_t nc) {
  constexpr int L = kLanes<A>, NV = kStatsVectors;
  Vec<A> sum[NV], ns[NV];
  for (int v = 0; v < NV; ++v) {
    sum[v] = Vec<A>{};
    if (NOISE) ns[v] = load_part<FULL>(a.noise_scale + c0 + v * L, nc - v * L);
  }
  for (int64_t p = q0; p < q1; ++p) {
    const T* x = a.x + p * a.channels + c0;
    prefetch_channels<T, NV * L>(x + kStatsBlock * a.channels);
    const Vec<A> n = NOISE ? splat<A>(static_cast<A>(a.noise[p])) : Vec<A>{};
    for (int v = 0; v < NV; ++v) {
      const Vec<A> value = load_part<FULL>(x + v * L, nc - v * L);
      sum[v] += NOISE ? value + n * ns[v] : value;
    }
  }
  const A inverse = A(1) / static_cast<A>(q1 - q0);
  Vec<A> m2[NV];
  for (int v = 0; v < NV; ++v) sum[v] = sum[v] * inverse, m2[v] = Vec<A>{};  // sums become means
  for (int64_t p = q0; p < q1; ++p) {
    const T* x = a.x + p * a.channels + c0;
    const Vec<A> n = NOISE ? splat<A>(static_cast<A>(a.noise[p])) : Vec<A>{};
    for (int v = 0; v < NV; ++v) {
      const Vec<A> value = load_part<FULL>(x + v * L, nc - v * L);
      const Vec<A> d = (NOISE ? value + n * ns[v] : value) - sum[v];
      m2[v] += d * d;
    }
  }
  const int64_t count = q1 - q0;
  const A weight = static_cast<A>(count) / static_cast<A>(done + count), cross = static_cast<A>(done) * weight;
  for (int v = 0; v < NV; ++v) {
    const int64_t n = nc - v * L;
    if (n <= 0) break;
    A *mean = mean_out + c0 + v * L, *squares = m2_out + c0 + v * L;
    const Vec<A> before = done ? load_part<FULL>(mean, n) : Vec<A>{}, delta = sum[v] - before;
    const Vec<A> squares_before = done ? load_part<FULL>(squares, n) : Vec<A>{};
    store_part<FULL>(mean, before + delta * weight, n);
    store_part<FULL>(squares, squares_before + (m2[v] + delta * delta * cross), n);
  }
}

template <typename T, typename A, bool NOISE>
MIXSYN_INLINE void stats_tile(const RegionNorm<T, A>& a, A* mean, A* m2, int64_t p0, int64_t p1, int64_t c0,
                              int64_t c1) {
  constexpr int64_t kStep = kStatsVectors * kLanes<A>, kBlock = kStatsBlock;
  for (int64_t q0 = p0; q0 < p1; q0 += kBlock) {
    const int64_t q1 = q0 + kBlock < p1 ? q0 + kBlock : p1;
    for (int64_t c = c0; c < c1; c += kStep)
      c1 - c >= kStep ? stats_block<T, A, true, NOISE>(a, mean, m2, q0 - p0, q0, q1, c, c1 - c)
                      : stats_block<T, A, false, NOISE>(a, mean, m2, q0 - p0, q0, q1, c, c1 - c);
  }
}

// Items: image-aligned pixel chunks x channel tiles; the tiles of a chunk that come together are worked through together,
// block by block of pixels, so that memory is read in its order. partial_* are (B * chunks per image, C).
template <typename T, typename A>
void stats_tiles(const RegionNorm<T, A>& a, A* partial_mean, A* partial_m2, int64_t begin, int64_t end) {
  constexpr int64_t kTile = kTileLines * kLine<A>;
  const int64_t tiles = (a.channels + kTile - 1) / kTile;
  const int64_t chunks = (a.pixels + kPixelChunk - 1) / kPixelChunk;
  for (int64_t item = begin; item < end;) {
    const int64_t chunk = item / tiles, first = item % tiles;
    const int64_t last = end - item < tiles - first ? first + (end - item) : tiles;
    const int64_t image = chunk / chunks, in_image = (chunk % chunks) * kPixelChunk;
    const int64_t p0 = image * a.pixels + in_image;
    const int64_t left = a.pixels - in_image;
    const int64_t p1 = p0 + (left < kPixelChunk ? left : kPixelChunk);
    const int64_t c0 = first * kTile, c1 = last * kTile < a.channels ? last * kTile : a.channels;
    A* mean = partial_mean + chunk * a.channels;
    A* m2 = partial_m2 + chunk * a.channels;
    a.noise ? stats_tile<T, A, true>(a, mean, m2, p0, p1, c0, c1)
            : stats_tile<T, A, false>(a, mean, m2, p0, p1, c0, c1);
    item += last - first;
  }
}

// Whether full vectors of a result are written past the caches.
template <typename T, typename A>
MIXSYN_INLINE bool streams_rows(const RegionNorm<T, A>& a, const T* to) {
  constexpr int64_t kLeast = 16 << 20;
  if constexpr (std::is_same_v<T, A>) return streams(to, a.channels, a.batch * a.pixels * a.channels, kLeast);
  return false;
}
template <bool STREAM, typename T, typename V>
MIXSYN_INLINE void store_row(T* to, V v) {
  if constexpr (STREAM && sizeof(T) == sizeof(v[0])) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

// MAPS: dense scale and shift instead of rows of the table. One pixel after another, all its channels.
template <typename T, typename A, bool SILU, bool MAPS, bool NOISE, bool STREAM>
MIXSYN_INLINE void apply_range(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, full = C / L * L;
  const Vec<A> slope = splat<A>(a.slope), zero = {};
  int64_t image = begin / a.pixels, left = (image + 1) * a.pixels - begin;
  for (int64_t p = begin; p < end; ++p, --left) {
    if (left == 0) ++image, left = a.pixels;
    const int64_t group = a.groups == 1 ? 0 : image;
    const A* mean = a.mean + group * C;
    const A* rstd = a.rstd + group * C;
    const T* x = a.x + p * C;
    T* y = a.y + p * C;
    const A* row = MAPS ? nullptr : a.table + (a.index ? a.index[p] : image * a.image_row) * 2 * C;
    if (!MAPS && a.index && p + 1 < end && a.index[p + 1] != a.index[p]) prefetch_row(a, p + 1, 0, C);
    const T* scale = MAPS ? a.scale + p * C : nullptr;
    const T* shift = MAPS ? a.shift + p * C : nullptr;
    const Vec<A> n = NOISE ? splat<A>(static_cast<A>(a.noise[p])) : zero;
    for (int64_t c = 0; c < full; c += L) {
      const Vec<A> xhat =
          normalised<NOISE>(load(x + c), n, NOISE ? load(a.noise_scale + c) : zero, load(mean + c), load(rstd + c));
      Vec<A> gamma, beta;
      if constexpr (MAPS) {
        gamma = load(scale + c), beta = load(shift + c);
      } else {
        gamma = load(row + c), beta = load(row + C + c);
      }
      store_row<STREAM>(y + c, activated<SILU, Vec<A>>(xhat * gamma + beta, slope));
    }
    if (SILU && full < C) {
      const int64_t c = full, m = C - full;
      const Vec<A> ns = NOISE ? load_n(a.noise_scale + c, m) : zero;
      const Vec<A> xhat = normalised<NOISE>(load_n(x + c, m), n, ns, load_n(mean + c, m), load_n(rstd + c, m));
      Vec<A> gamma, beta;
      if constexpr (MAPS) {
        gamma = load_n(scale + c, m), beta = load_n(shift + c, m);
      } else {
        gamma = load_n(row + c, m), beta = load_n(row + C + c, m);
      }
      store_n(y + c, activated<SILU, Vec<A>>(xhat * gamma + beta, slope), m);
    }
    for (int64_t c = full; !SILU && c < C; ++c) {
      const A noise = NOISE ? static_cast<A>(a.noise[p]) * a.noise_scale[c] : A(0);
      const A xhat = (static_cast<A>(x[c]) + noise - mean[c]) * rstd[c];
      const A value = MAPS ? xhat * static_cast<A>(scale[c]) + static_cast<A>(shift[c]) : xhat * row[c] + row[C + c];
      y[c] = static_cast<T>(value > 0 ? value : value * a.slope);
    }
  }
}

// What the channels [c, c + kLanes) of an image have in common in an even problem, read once for a few pixels: the value
// before the activation is (x - mean) * factor + beta.
template <typename A>
struct EvenChannels {
  Vec<A> mean, rstd, factor, beta;
};
template <bool FULL, typename T, typename A>
MIXSYN_INLINE EvenChannels<A> even_channels(const RegionNorm<T, A>& a, int64_t image, int64_t c, int64_t m) {
  const int64_t at = (a.groups == 1 ? 0 : image) * a.channels + c;
  const A* row = a.table + image * a.image_row * 2 * a.channels + c;
  const Vec<A> rstd = load_part<FULL>(a.rstd + at, m);
  return {load_part<FULL>(a.mean + at, m), rstd, rstd * load_part<FULL>(row, m), load_part<FULL>(row + a.channels, m)};
}

constexpr int kEvenPixels = 4;

// y of N pixels of one image from p on.
template <typename T, typename A, bool SILU, bool STREAM, int N>
MIXSYN_INLINE void apply_even_block(const RegionNorm<T, A>& a, int64_t image, int64_t p) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, full = C / L * L;
  const Vec<A> slope = splat<A>(a.slope);
  const T* x = a.x + p * C;
  T* y = a.y + p * C;
  for (int64_t c = 0; c < full; c += L) {
    const EvenChannels<A> e = even_channels<true>(a, image, c, L);
    MIXSYN_UNROLL
    for (int i = 0; i < N; ++i)
      store_row<STREAM>(y + i * C + c,
                        activated<SILU, Vec<A>>((load(x + i * C + c) - e.mean) * e.factor + e.beta, slope));
  }
  if (full == C) return;
  const EvenChannels<A> e = even_channels<false>(a, image, full, C - full);
  for (int i = 0; i < N; ++i) {
    const Vec<A> value = (load_n(x + i * C + full, C - full) - e.mean) * e.factor + e.beta;
    store_n(y + i * C + full, activated<SILU, Vec<A>>(value, slope), C - full);
  }
}

template <typename T, typename A, bool SILU, bool STREAM>
MIXSYN_BLOCK void apply_even_pixels(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end;) {
    const int64_t image = p / a.pixels, image_end = (image + 1) * a.pixels, last = image_end < end ? image_end : end;
    for (; p + kEvenPixels <= last; p += kEvenPixels) apply_even_block<T, A, SILU, STREAM, kEvenPixels>(a, image, p);
    for (; p < last; ++p) apply_even_block<T, A, SILU, STREAM, 1>(a, image, p);
  }
}

// From the end to the begin: what the statistics read last is still in the caches.
template <typename T, typename A, bool SILU, bool MAPS, bool NOISE>
MIXSYN_INLINE void apply_backwards(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  const bool stream = streams_rows<T, A>(a, a.y);
  for (int64_t p1 = end; p1 > begin; p1 -= kPixelChunk) {
    const int64_t p0 = p1 - begin > kPixelChunk ? p1 - kPixelChunk : begin;
    if (!MAPS && !NOISE && !a.index) {
      stream ? apply_even_pixels<T, A, SILU, true>(a, p0, p1) : apply_even_pixels<T, A, SILU, false>(a, p0, p1);
    } else {
      stream ? apply_range<T, A, SILU, MAPS, NOISE, true>(a, p0, p1)
             : apply_range<T, A, SILU, MAPS, NOISE, false>(a, p0, p1);
    }
  }
  stream_fence();
}

template <typename T, typename A, bool SILU>
MIXSYN_INLINE void apply_activated(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  if (a.scale) {
    a.noise ? apply_backwards<T, A, SILU, true, true>(a, begin, end)
            : apply_backwards<T, A, SILU, true, false>(a, begin, end);
  } else {
    a.noise ? apply_backwards<T, A, SILU, false, true>(a, begin, end)
            : apply_backwards<T, A, SILU, false, false>(a, begin, end);
  }
}
template <typename T, typename A>
void apply_pixels(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  a.silu ? apply_activated<T, A, true>(a, begin, end) : apply_activated<T, A, false>(a, begin, end);
}

// How many pixels ahead a reduction asks for its channels: they lie a whole pixel apart, too far for the hardware to follow.
constexpr int64_t kReduceAhead = 16;
constexpr int64_t kReduceRun = 64;

// Pixels of a block of a reduction, whole runs: x and grad of the block's channels stay in half of a second-level cache
// while they pass a few at a time.
template <typename T>
MIXSYN_INLINE int64_t reduce_block(int64_t channels) {
  const int64_t runs = (512 << 10) / (2 * static_cast<int64_t>(sizeof(T)) * kReduceRun * channels);
  const int64_t most = kPixelChunk / kReduceRun;
  return kReduceRun * (runs < 1 ? 1 : runs > most ? most : runs);
}

// One tile of channels over the pixels [p0, p1): sums of a run of pixels with the same row stay in registers and are
// added to the row when the run ends (or after kReduceRun pixels: two-level summation keeps float32 sums exact enough).
// Since gamma is constant in a run, sum ghat = gamma * sum g' and sum ghat * xhat = gamma * sum g' * xhat come free, and
// so is rstd: values are (x - mean) * (rstd * gamma) + beta, sums those of g' * (x - mean).
template <typename T, typename A, bool SILU, bool FULL, bool MAPS, bool NOISE>
MIXSYN_INLINE void reduce_tile(const RegionNorm<T, A>& a, int64_t split, int64_t p0, int64_t p1, int64_t c0,
                               int64_t nc) {
  constexpr int L = kLanes<A>, NV = FULL ? 2 : 1;
  const int64_t C = a.channels;
  const Vec<A> zero = {}, slope = splat<A>(a.slope), one = splat<A>(A(1));
  for (int64_t cv = 0; cv < nc; cv += NV * L) {
    const int64_t c = c0 + cv, n = nc - cv;
    Vec<A> ns[NV];
    for (int v = 0; v < NV; ++v) ns[v] = NOISE ? load_part<FULL>(a.noise_scale + c + v * L, n - v * L) : zero;
    int64_t p = p0;
    while (p < p1) {
      const int64_t image = p / a.pixels;
      const int64_t image_end = (image + 1) * a.pixels < p1 ? (image + 1) * a.pixels : p1;
      const int64_t group = a.groups == 1 ? 0 : image;
      Vec<A> mean[NV], rstd[NV], total_g[NV], total_gx[NV];
      for (int v = 0; v < NV; ++v) {
        mean[v] = load_part<FULL>(a.mean + group * C + c + v * L, n - v * L);
        rstd[v] = load_part<FULL>(a.rstd + group * C + c + v * L, n - v * L);
        total_g[v] = zero, total_gx[v] = zero;
      }
      while (p < image_end) {
        const int64_t row = MAPS ? 0 : a.index ? a.index[p] : image * a.image_row;
        const int64_t limit = p + kReduceRun < image_end ? p + kReduceRun : image_end;
        Vec<A> gamma[NV], beta[NV], factor[NV], run_g[NV], run_gx[NV];
        for (int v = 0; v < NV; ++v) {
          run_g[v] = zero, run_gx[v] = zero;
          gamma[v] = one, beta[v] = zero;
          if (!MAPS) {
            gamma[v] = load_part<FULL>(a.table + row * 2 * C + c + v * L, n - v * L);
            beta[v] = load_part<FULL>(a.table + row * 2 * C + C + c + v * L, n - v * L);
          }
          factor[v] = rstd[v] * gamma[v];
        }
        int64_t q = p;
        do {
          prefetch_channels<T, NV * L>(a.x + (q + kReduceAhead) * C + c);
          prefetch_channels<T, NV * L>(a.grad + (q + kReduceAhead) * C + c);
          const Vec<A> noise = NOISE ? splat<A>(static_cast<A>(a.noise[q])) : zero;
          for (int v = 0; v < NV; ++v) {
            const int64_t at = q * C + c + v * L, m = n - v * L;
            const Vec<A> x = load_part<FULL>(a.x + at, m), deviation = (NOISE ? x + noise * ns[v] : x) - mean[v];
            if constexpr (MAPS) {
              gamma[v] = load_part<FULL>(a.scale + at, m);
              beta[v] = load_part<FULL>(a.shift + at, m);
              factor[v] = rstd[v] * gamma[v];
            }
            Vec<A> g = load_part<FULL>(a.grad + at, m);
            g = before_activation<SILU, Vec<A>>(g, deviation * factor[v] + beta[v], slope);
            if constexpr (MAPS) g = g * gamma[v];
            run_g[v] += g;
            run_gx[v] += g * deviation;
          }
          ++q;
        } while (q < limit && (MAPS || !a.index || a.index[q] == row));
        for (int v = 0; v < NV; ++v) {
          const int64_t m = n - v * L;
          if (m <= 0) break;
          run_gx[v] = run_gx[v] * rstd[v];
          if (!MAPS && a.grad_table) {
            A* out = a.grad_table + (split * a.rows + row) * 2 * C + c + v * L;
            store_part<FULL>(out, load_part<FULL>(out, m) + run_gx[v], m);
            store_part<FULL>(out + C, load_part<FULL>(out + C, m) + run_g[v], m);
          }
          total_g[v] += MAPS ? run_g[v] : gamma[v] * run_g[v];
          total_gx[v] += MAPS ? run_gx[v] : gamma[v] * run_gx[v];
        }
        p = q;
      }
      if (a.sums) {
        A* out = a.sums + (split * a.groups + group) * 2 * C + c;
        for (int v = 0; v < NV; ++v) {
          const int64_t m = n - v * L;
          if (m <= 0) break;
          store_part<FULL>(out + v * L, load_part<FULL>(out + v * L, m) + total_g[v], m);
          store_part<FULL>(out + C + v * L, load_part<FULL>(out + C + v * L, m) + total_gx[v], m);
        }
      }
    }
  }
}

// Items: (split, channel tile): a split is a fixed share of all pixels with partial sums of its own.
template <typename T, typename A, bool SILU, bool NOISE>
MIXSYN_INLINE void reduce_items(const RegionNorm<T, A>& a, int64_t tile_channels, int64_t begin, int64_t end) {
  const int64_t tiles = (a.channels + tile_channels - 1) / tile_channels;
  const int64_t all = a.batch * a.pixels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t split = item / tiles, c0 = (item % tiles) * tile_channels;
    const int64_t p0 = all * split / a.splits, p1 = all * (split + 1) / a.splits;
    const int64_t rest = a.channels - c0;
    const int64_t nc = rest < tile_channels ? rest : tile_channels;
    const bool full = nc % (2 * kLanes<A>) == 0;
    const int64_t block = reduce_block<T>(nc);
    for (int64_t q0 = p0; q0 < p1; q0 += block) {
      const int64_t q1 = q0 + block < p1 ? q0 + block : p1;
      if (a.scale) {
        full ? reduce_tile<T, A, SILU, true, true, NOISE>(a, split, q0, q1, c0, nc)
             : reduce_tile<T, A, SILU, false, true, NOISE>(a, split, q0, q1, c0, nc);
      } else {
        full ? reduce_tile<T, A, SILU, true, false, NOISE>(a, split, q0, q1, c0, nc)
             : reduce_tile<T, A, SILU, false, false, NOISE>(a, split, q0, q1, c0, nc);
      }
    }
  }
}
template <typename T, typename A, bool SILU>
MIXSYN_INLINE void reduce_activated(const RegionNorm<T, A>& a, int64_t tile_channels, int64_t begin, int64_t end) {
  a.noise ? reduce_items<T, A, SILU, true>(a, tile_channels, begin, end)
          : reduce_items<T, A, SILU, false>(a, tile_channels, begin, end);
}

template <typename T, typename A>
void reduce_tiles(const RegionNorm<T, A>& a, int64_t tile_channels, int64_t begin, int64_t end) {
  a.silu ? reduce_activated<T, A, true>(a, tile_channels, begin, end)
         : reduce_activated<T, A, false>(a, tile_channels, begin, end);
}

// Gradients at the channels [c, c + kLanes) of a pixel, of which there are m.
template <typename T, typename A, bool SILU, bool MAPS, bool NOISE, bool FULL>
MIXSYN_INLINE void input_vector(const RegionNorm<T, A>& a, int64_t p, int64_t c, int64_t m, int64_t group, int64_t row,
                                Vec<A> n, A* noise_sums) {
  const int64_t C = a.channels, at = p * C + c, stats = group * C + c;
  const Vec<A> rstd = load_part<FULL>(a.rstd + stats, m), mean = load_part<FULL>(a.mean + stats, m);
  const Vec<A> ns = NOISE ? load_part<FULL>(a.noise_scale + c, m) : Vec<A>{};
  const Vec<A> xhat = normalised<NOISE>(load_part<FULL>(a.x + at, m), n, ns, mean, rstd);
  Vec<A> gamma, beta;
  if constexpr (MAPS) {
    gamma = load_part<FULL>(a.scale + at, m), beta = load_part<FULL>(a.shift + at, m);
  } else {
    gamma = load_part<FULL>(a.table + row * 2 * C + c, m), beta = load_part<FULL>(a.table + row * 2 * C + C + c, m);
  }
  const Vec<A> grad = load_part<FULL>(a.grad + at, m);
  const Vec<A> g = before_activation<SILU, Vec<A>>(grad, xhat * gamma + beta, splat<A>(a.slope));
  if constexpr (MAPS) {
    if (a.grad_scale) store_part<FULL>(a.grad_scale + at, g * xhat, m), store_part<FULL>(a.grad_shift + at, g, m);
  }
  Vec<A> dx = g * gamma;
  if (a.mean_g) dx = dx - load_part<FULL>(a.mean_g + stats, m) - xhat * load_part<FULL>(a.mean_gx + stats, m);
  dx = dx * rstd;
  store_part<FULL>(a.grad_x + at, dx, m);
  if (NOISE && noise_sums) store_part<FULL>(noise_sums + c, load_part<FULL>(noise_sums + c, m) + dx * n, m);
}

// Gradient of x (and of the maps) for whole pixel chunks; partial sums of grad_x * noise per chunk.
template <typename T, typename A, bool SILU, bool MAPS, bool NOISE>
MIXSYN_INLINE void input_chunk(const RegionNorm<T, A>& a, int64_t chunk) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, all = a.batch * a.pixels, full = C / L * L;
  const int64_t p0 = chunk * a.chunk, p1 = p0 + a.chunk < all ? p0 + a.chunk : all;
  A* noise_sums = NOISE && a.noise_sums ? a.noise_sums + chunk * C : nullptr;
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t image = a.groups == 1 && a.image_row == 0 ? 0 : p / a.pixels;
    const int64_t group = a.groups == 1 ? 0 : image;
    const int64_t row = MAPS ? 0 : a.index ? a.index[p] : image * a.image_row;
    const Vec<A> n = NOISE ? splat<A>(static_cast<A>(a.noise[p])) : Vec<A>{};
    for (int64_t c = 0; c < full; c += L)
      input_vector<T, A, SILU, MAPS, NOISE, true>(a, p, c, L, group, row, n, noise_sums);
    if (full < C) input_vector<T, A, SILU, MAPS, NOISE, false>(a, p, full, C - full, group, row, n, noise_sums);
  }
}

// The gradient of x in an even problem, as input_even has it: some channels of N pixels of one image from p on.
template <typename T, typename A, bool SILU, bool STATS, int N, bool FULL>
MIXSYN_INLINE void input_even_vectors(const RegionNorm<T, A>& a, int64_t image, int64_t p, int64_t c, int64_t m) {
  const int64_t stats = (a.groups == 1 ? 0 : image) * a.channels + c;
  const EvenChannels<A> e = even_channels<FULL>(a, image, c, m);
  const Vec<A> slope = splat<A>(a.slope);
  Vec<A> less = {}, by_deviation = {};
  if constexpr (STATS) {
    less = load_part<FULL>(a.mean_g + stats, m) * e.rstd;
    by_deviation = load_part<FULL>(a.mean_gx + stats, m) * e.rstd * e.rstd;
  }
  MIXSYN_UNROLL
  for (int i = 0; i < N; ++i) {
    const int64_t at = (p + i) * a.channels + c;
    const Vec<A> deviation = load_part<FULL>(a.x + at, m) - e.mean, grad = load_part<FULL>(a.grad + at, m);
    const Vec<A> g = before_activation<SILU, Vec<A>>(grad, deviation * e.factor + e.beta, slope);
    store_part<FULL>(a.grad_x + at, STATS ? g * e.factor - (deviation * by_deviation + less) : g * e.factor, m);
  }
}
template <typename T, typename A, bool SILU, bool STATS, int N>
MIXSYN_INLINE void input_even_block(const RegionNorm<T, A>& a, int64_t image, int64_t p) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, full = C / L * L;
  for (int64_t c = 0; c < full; c += L) input_even_vectors<T, A, SILU, STATS, N, true>(a, image, p, c, L);
  if (full < C) input_even_vectors<T, A, SILU, STATS, N, false>(a, image, p, full, C - full);
}
template <typename T, typename A, bool SILU, bool STATS>
MIXSYN_BLOCK void input_even_pixels(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end;) {
    const int64_t image = p / a.pixels, image_end = (image + 1) * a.pixels, last = image_end < end ? image_end : end;
    for (; p + kEvenPixels <= last; p += kEvenPixels) input_even_block<T, A, SILU, STATS, kEvenPixels>(a, image, p);
    for (; p < last; ++p) input_even_block<T, A, SILU, STATS, 1>(a, image, p);
  }
}

template <typename T, typename A, bool SILU>
MIXSYN_INLINE void input_activated(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  if (is_even(a)) {
    const int64_t all = a.batch * a.pixels, last = end * a.chunk < all ? end * a.chunk : all;
    a.mean_g ? input_even_pixels<T, A, SILU, true>(a, begin * a.chunk, last)
             : input_even_pixels<T, A, SILU, false>(a, begin * a.chunk, last);
    return;
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (a.scale) {
      a.noise ? input_chunk<T, A, SILU, true, true>(a, chunk) : input_chunk<T, A, SILU, true, false>(a, chunk);
    } else {
      a.noise ? input_chunk<T, A, SILU, false, true>(a, chunk) : input_chunk<T, A, SILU, false, false>(a, chunk);
    }
  }
}
template <typename T, typename A>
void input_chunks(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  a.silu ? input_activated<T, A, true>(a, begin, end) : input_activated<T, A, false>(a, begin, end);
}

// ------------------------------------------------------------------------------------------------ contiguous

// Everything a block of kLine pixels of one plane needs. `gamma` and `beta` are columns of the transposed table.
template <typename A>
struct PlaneTable {
  const A* gamma;  // (R)
  const A* beta;   // (R)
};

// Lanes past the end read row 0, of which there is always one.
template <typename A>
MIXSYN_INLINE Vec<A> gathered(const A* column, const int32_t* index, int64_t n) {
  if (n >= kLanes<A>) return gather(column, index);
  int32_t rows[kLanes<A>] = {};
  for (int i = 0; i < kLanes<A>; ++i)
    if (i < n) rows[i] = index[i];
  return gather(column, rows);
}

// `row` is the one row of the block, or -1.
template <typename A>
MIXSYN_INLINE void modulation(const PlaneTable<A>& t, int32_t row, const int32_t* index, int64_t n, Vec<A>& gamma,
                              Vec<A>& beta) {
  if (row >= 0) {
    gamma = splat<A>(t.gamma[row]), beta = splat<A>(t.beta[row]);
  } else {
    gamma = gathered<A>(t.gamma, index, n), beta = gathered<A>(t.beta, index, n);
  }
}

// v with zeros from lane n on.
template <typename A>
MIXSYN_INLINE Vec<A> first_lanes(Vec<A> v, int64_t n) {
  Vec<A> lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = static_cast<A>(i);
  return lane < static_cast<A>(n) ? v : Vec<A>{};
}

template <typename T, typename A>
MIXSYN_INLINE void plane_stats(const T* x, const T* noise, A noise_scale, int64_t n, A& mean_out, A& m2_out) {
  constexpr int L = kLanes<A>;
  const Vec<A> zero = {};
  // first pass: mean by four independent sums per block of 4096, blocks merged as plain sums of block means
  A sum = 0;
  const Vec<A> ns = splat<A>(noise_scale);
  for (int64_t q0 = 0; q0 < n; q0 += 4096) {
    const int64_t q1 = q0 + 4096 < n ? q0 + 4096 : n;
    Vec<A> s[4] = {zero, zero, zero, zero};
    int64_t p = q0;
    for (; p + 4 * L <= q1; p += 4 * L) {
      MIXSYN_UNROLL
      for (int j = 0; j < 4; ++j) {
        s[j] += load(x + p + j * L);
        if (noise) s[j] += load(noise + p + j * L) * ns;
      }
    }
    for (; p < q1; p += L) {
      s[0] += load_part<false>(x + p, q1 - p);
      if (noise) s[0] += load_part<false>(noise + p, q1 - p) * ns;
    }
    sum += lane_sum<A>((s[0] + s[1]) + (s[2] + s[3]));
  }
  const A mean = n ? sum / static_cast<A>(n) : A(0);
  const Vec<A> m = splat<A>(mean);
  A m2 = 0;
  for (int64_t q0 = 0; q0 < n; q0 += 4096) {
    const int64_t q1 = q0 + 4096 < n ? q0 + 4096 : n;
    Vec<A> s[4] = {zero, zero, zero, zero};
    int64_t p = q0;
    for (; p + 4 * L <= q1; p += 4 * L) {
      MIXSYN_UNROLL
      for (int j = 0; j < 4; ++j) {
        Vec<A> v = load(x + p + j * L) - m;
        if (noise) v += load(noise + p + j * L) * ns;
        s[j] += v * v;
      }
    }
    for (; p < q1; p += L) {
      Vec<A> v = load_part<false>(x + p, q1 - p) - m;
      if (noise) v += load_part<false>(noise + p, q1 - p) * ns;
      s[0] += first_lanes<A>(v, q1 - p) * v;
    }
    m2 += lane_sum<A>((s[0] + s[1]) + (s[2] + s[3]));
  }
  mean_out = mean, m2_out = m2;
}

// Items: planes (image, channel); mean and m2 are (B, C).
template <typename T, typename A>
void stats_planes(const RegionNorm<T, A>& a, A* mean, A* m2, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / a.channels, c = plane % a.channels;
    plane_stats<T, A>(a.x + plane * a.pixels, a.noise ? a.noise + image * a.pixels : nullptr,
                      a.noise ? a.noise_scale[c] : A(0), a.pixels, mean[plane], m2[plane]);
  }
}

// A plane of an even problem: four numbers and no choice. Its loops are functions of their own: beside the others the
// compiler runs out of registers.
template <typename A>
struct EvenPlane {
  int64_t at;   // of its statistics
  int64_t row;  // of the table
  A mean, rstd, gamma, beta, slope;
};
template <typename T, typename A>
MIXSYN_INLINE EvenPlane<A> even_plane(const RegionNorm<T, A>& a, int64_t image, int64_t c) {
  const int64_t at = (a.groups == 1 ? 0 : image) * a.channels + c, row = image * a.image_row;
  const A gamma = a.table[c * a.rows + row], beta = a.table[(a.channels + c) * a.rows + row];
  return {at, row, a.mean[at], a.rstd[at], gamma, beta, a.slope};
}

template <typename T, typename A, bool SILU>
MIXSYN_BLOCK void apply_even(const EvenPlane<A>& e, const T* x, T* y, int64_t n) {
  constexpr int L = kLanes<A>;
  const Vec<A> mean = splat<A>(e.mean), factor = splat<A>(e.rstd * e.gamma), beta = splat<A>(e.beta);
  const Vec<A> slope = splat<A>(e.slope);
  int64_t p = 0;
  for (; p + L <= n; p += L) store(y + p, activated<SILU, Vec<A>>((load(x + p) - mean) * factor + beta, slope));
  if (p < n) store_n(y + p, activated<SILU, Vec<A>>((load_n(x + p, n - p) - mean) * factor + beta, slope), n - p);
}

// Sums of g' and of g' * (x - mean), and with KEEP g' itself; of a rest, gradients past the end are zero.
template <typename T, typename A, bool SILU, bool KEEP>
MIXSYN_BLOCK void sum_even(const EvenPlane<A>& e, const T* x, const T* grad, int64_t n, A* sums, T* kept) {
  constexpr int L = kLanes<A>;
  const Vec<A> mean = splat<A>(e.mean), factor = splat<A>(e.rstd * e.gamma), beta = splat<A>(e.beta);
  const Vec<A> slope = splat<A>(e.slope);
  Vec<A> sum_g = {}, sum_gx = {};
  int64_t p = 0;
  for (; p + L <= n; p += L) {
    const Vec<A> deviation = load(x + p) - mean;
    const Vec<A> g = before_activation<SILU, Vec<A>>(load(grad + p), deviation * factor + beta, slope);
    if (KEEP) store(kept + p, g);
    sum_g += g, sum_gx += g * deviation;
  }
  if (p < n) {
    const Vec<A> deviation = load_n(x + p, n - p) - mean;
    const Vec<A> g = before_activation<SILU, Vec<A>>(load_n(grad + p, n - p), deviation * factor + beta, slope);
    if (KEEP) store_n(kept + p, g, n - p);
    sum_g += g, sum_gx += g * deviation;
  }
  sums[0] += lane_sum<A>(sum_g), sums[1] += lane_sum<A>(sum_gx);
}

// (g' gamma - mean_g - xhat mean_gx) rstd = g' (gamma rstd) - (x - mean) (mean_gx rstd^2) - mean_g rstd. Without STATS the
// first term: of an infinite x as well.
template <typename T, typename A, bool SILU, bool STATS>
MIXSYN_BLOCK void input_even(const EvenPlane<A>& e, A mean_g, A mean_gx, const T* x, const T* grad, T* to, int64_t n) {
  constexpr int L = kLanes<A>;
  const Vec<A> mean = splat<A>(e.mean), factor = splat<A>(e.rstd * e.gamma), beta = splat<A>(e.beta);
  const Vec<A> slope = splat<A>(e.slope);
  const Vec<A> less = splat<A>(mean_g * e.rstd), by_deviation = splat<A>(mean_gx * e.rstd * e.rstd);
  int64_t p = 0;
  for (; p + L <= n; p += L) {
    const Vec<A> deviation = load(x + p) - mean;
    const Vec<A> g = before_activation<SILU, Vec<A>>(load(grad + p), deviation * factor + beta, slope);
    store(to + p, STATS ? g * factor - (deviation * by_deviation + less) : g * factor);
  }
  if (p < n) {
    const Vec<A> deviation = load_n(x + p, n - p) - mean;
    const Vec<A> g = before_activation<SILU, Vec<A>>(load_n(grad + p, n - p), deviation * factor + beta, slope);
    store_n(to + p, STATS ? g * factor - (deviation * by_deviation + less) : g * factor, n - p);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void apply_even_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const EvenPlane<A> e = even_plane(a, plane / a.channels, plane % a.channels);
    const int64_t base = plane * a.pixels;
    a.silu ? apply_even<T, A, true>(e, a.x + base, a.y + base, a.pixels)
           : apply_even<T, A, false>(e, a.x + base, a.y + base, a.pixels);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void reduce_even_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 4096;
  for (int64_t c = begin; c < end; ++c)
    for (int64_t image = 0; image < a.batch; ++image) {
      const EvenPlane<A> e = even_plane(a, image, c);
      A sums[2] = {0, 0};
      for (int64_t q = 0; q < a.pixels; q += kBlock) {
        const int64_t base = (image * a.channels + c) * a.pixels + q, n = a.pixels - q < kBlock ? a.pixels - q : kBlock;
        a.silu ? sum_even<T, A, true, false>(e, a.x + base, a.grad + base, n, sums, nullptr)
               : sum_even<T, A, false, false>(e, a.x + base, a.grad + base, n, sums, nullptr);
      }
      sums[1] *= e.rstd;
      if (a.grad_table) {
        a.grad_table[c * a.rows + e.row] += sums[1];
        a.grad_table[(a.channels + c) * a.rows + e.row] += sums[0];
      }
      if (a.sums) {
        A* out = a.sums + (a.groups == 1 ? 0 : image) * 2 * a.channels + c;
        out[0] += sums[0] * e.gamma, out[a.channels] += sums[1] * e.gamma;
      }
    }
}

template <typename T, typename A, bool SILU, bool STATS>
MIXSYN_INLINE void input_even_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const EvenPlane<A> e = even_plane(a, plane / a.channels, plane % a.channels);
    const A mean_g = STATS ? a.mean_g[e.at] : A(0), mean_gx = STATS ? a.mean_gx[e.at] : A(0);
    const int64_t base = plane * a.pixels;
    input_even<T, A, SILU, STATS>(e, mean_g, mean_gx, a.x + base, a.grad + base, a.grad_x + base, a.pixels);
  }
}

template <typename T, typename A, bool SILU>
MIXSYN_INLINE void apply_planes_activated(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const Vec<A> slope = splat<A>(a.slope), zero = {};
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / a.channels, c = plane % a.channels;
    const int64_t group = a.groups == 1 ? 0 : image, base = plane * a.pixels;
    const Vec<A> mean = splat<A>(a.mean[group * a.channels + c]), rstd = splat<A>(a.rstd[group * a.channels + c]);
    const Vec<A> ns = a.noise ? splat<A>(a.noise_scale[c]) : zero;
    const T* noise = a.noise ? a.noise + image * a.pixels : nullptr;
    const int32_t* index = a.index ? a.index + image * a.pixels : nullptr;
    const int32_t* block_row = a.index ? a.block_row + image * ((a.pixels + kLine<A> - 1) / kLine<A>) : nullptr;
    const PlaneTable<A> t = {a.table ? a.table + c * a.rows : nullptr,
                             a.table ? a.table + (a.channels + c) * a.rows : nullptr};
    const int64_t row = image * a.image_row;
    for (int64_t p = 0; p < a.pixels; p += L) {
      const int64_t n = a.pixels - p;
      const Vec<A> nv = noise ? load_part<false>(noise + p, n) : zero;
      const Vec<A> xhat = normalised<true>(load_part<false>(a.x + base + p, n), nv, ns, mean, rstd);
      Vec<A> gamma, beta;
      if (a.scale) {
        gamma = load_part<false>(a.scale + base + p, n), beta = load_part<false>(a.shift + base + p, n);
      } else if (index) {
        modulation<A>(t, block_row[p / kLine<A>], index + p, n, gamma, beta);
      } else {
        gamma = splat<A>(t.gamma[row]), beta = splat<A>(t.beta[row]);
      }
      store_part<false>(a.y + base + p, activated<SILU, Vec<A>>(xhat * gamma + beta, slope), n);
    }
  }
}
template <typename T, typename A>
void apply_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  if (is_even(a)) {
    apply_even_planes<T, A>(a, begin, end);
  } else {
    a.silu ? apply_planes_activated<T, A, true>(a, begin, end) : apply_planes_activated<T, A, false>(a, begin, end);
  }
}

// Items: channels; all images of a channel one after another, so the sums need no second stage.
template <typename T, typename A, bool SILU>
MIXSYN_INLINE void reduce_planes_activated(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  constexpr int64_t kBlock = 4096;
  const Vec<A> slope = splat<A>(a.slope), zero = {};
  for (int64_t c = begin; c < end; ++c) {
    A* grad_gamma = a.grad_table ? a.grad_table + c * a.rows : nullptr;
    A* grad_beta = a.grad_table ? a.grad_table + (a.channels + c) * a.rows : nullptr;
    const PlaneTable<A> t = {a.table ? a.table + c * a.rows : nullptr,
                             a.table ? a.table + (a.channels + c) * a.rows : nullptr};
    for (int64_t image = 0; image < a.batch; ++image) {
      const int64_t group = a.groups == 1 ? 0 : image, base = (image * a.channels + c) * a.pixels;
      const Vec<A> mean = splat<A>(a.mean[group * a.channels + c]), rstd = splat<A>(a.rstd[group * a.channels + c]);
      const Vec<A> ns = a.noise ? splat<A>(a.noise_scale[c]) : zero;
      const T* noise = a.noise ? a.noise + image * a.pixels : nullptr;
      const int32_t* index = a.index ? a.index + image * a.pixels : nullptr;
      const int32_t* block_row = a.index ? a.block_row + image * ((a.pixels + kLine<A> - 1) / kLine<A>) : nullptr;
      A total_g = 0, total_gx = 0;
      for (int64_t q0 = 0; q0 < a.pixels; q0 += kBlock) {
        const int64_t q1 = q0 + kBlock < a.pixels ? q0 + kBlock : a.pixels;
        Vec<A> sum_g = zero, sum_gx = zero;  // of ghat
        // a run of blocks in one row keeps its sums of g' in registers
        int64_t run_row = -1;
        Vec<A> run_g = zero, run_gx = zero;
        for (int64_t p = q0; p < q1; p += L) {
          const int64_t n = q1 - p;
          const Vec<A> nv = noise ? load_part<false>(noise + p, n) : zero;
          const Vec<A> xhat = normalised<true>(load_part<false>(a.x + base + p, n), nv, ns, mean, rstd);
          Vec<A> gamma, beta;
          bool uniform = true;
          int64_t row = image * a.image_row;
          if (a.scale) {
            gamma = load_part<false>(a.scale + base + p, n), beta = load_part<false>(a.shift + base + p, n);
          } else if (index) {
            row = block_row[p / kLine<A>];
            uniform = row >= 0;
            modulation<A>(t, block_row[p / kLine<A>], index + p, n, gamma, beta);
          } else {
            gamma = splat<A>(t.gamma[row]), beta = splat<A>(t.beta[row]);
          }
          // lanes past the end are zero
          const Vec<A> grad = load_part<false>(a.grad + base + p, n);
          const Vec<A> g = before_activation<SILU, Vec<A>>(grad, xhat * gamma + beta, slope);
          const Vec<A> gx = g * xhat;
          sum_g += g * gamma;
          sum_gx += gx * gamma;
          if (!grad_gamma) continue;
          if (uniform) {
            if (row != run_row) {
              if (run_row >= 0) grad_gamma[run_row] += lane_sum<A>(run_gx), grad_beta[run_row] += lane_sum<A>(run_g);
              run_row = row, run_g = zero, run_gx = zero;
            }
            run_g += g, run_gx += gx;
          } else {
            for (int i = 0; i < L && i < n; ++i) {
              grad_gamma[index[p + i]] += gx[i];
              grad_beta[index[p + i]] += g[i];
            }
          }
        }
        if (grad_gamma && run_row >= 0) {
          grad_gamma[run_row] += lane_sum<A>(run_gx), grad_beta[run_row] += lane_sum<A>(run_g);
        }
        total_g += lane_sum<A>(sum_g), total_gx += lane_sum<A>(sum_gx);
      }
      if (a.sums) {
        a.sums[group * 2 * a.channels + c] += total_g;
        a.sums[group * 2 * a.channels + a.channels + c] += total_gx;
      }
    }
  }
}

template <typename T, typename A>
void reduce_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  if (is_even(a)) {
    reduce_even_planes<T, A>(a, begin, end);
  } else {
    a.silu ? reduce_planes_activated<T, A, true>(a, begin, end) : reduce_planes_activated<T, A, false>(a, begin, end);
  }
}

// Items: planes (image, channel); noise_sums is (B, C).
template <typename T, typename A, bool SILU>
MIXSYN_INLINE void input_planes_activated(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const Vec<A> slope = splat<A>(a.slope), zero = {};
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t image = plane / a.channels, c = plane % a.channels;
    const int64_t group = a.groups == 1 ? 0 : image, base = plane * a.pixels, at = group * a.channels + c;
    const Vec<A> mean = splat<A>(a.mean[at]), rstd = splat<A>(a.rstd[at]);
    const Vec<A> mean_g = a.mean_g ? splat<A>(a.mean_g[at]) : zero;
    const Vec<A> mean_gx = a.mean_g ? splat<A>(a.mean_gx[at]) : zero;
    const Vec<A> ns = a.noise ? splat<A>(a.noise_scale[c]) : zero;
    const T* noise = a.noise ? a.noise + image * a.pixels : nullptr;
    const int32_t* index = a.index ? a.index + image * a.pixels : nullptr;
    const int32_t* block_row = a.index ? a.block_row + image * ((a.pixels + kLine<A> - 1) / kLine<A>) : nullptr;
    const PlaneTable<A> t = {a.table ? a.table + c * a.rows : nullptr,
                             a.table ? a.table + (a.channels + c) * a.rows : nullptr};
    const int64_t row = image * a.image_row;
    A noise_total = 0;
    Vec<A> noise_sum = zero;
    for (int64_t p = 0, i = 0; p < a.pixels; p += L, ++i) {
      const int64_t n = a.pixels - p;
      const Vec<A> nv = noise ? load_part<false>(noise + p, n) : zero;
      const Vec<A> xhat = normalised<true>(load_part<false>(a.x + base + p, n), nv, ns, mean, rstd);
      Vec<A> gamma, beta;
      if (a.scale) {
        gamma = load_part<false>(a.scale + base + p, n), beta = load_part<false>(a.shift + base + p, n);
      } else if (index) {
        modulation<A>(t, block_row[p / kLine<A>], index + p, n, gamma, beta);
      } else {
        gamma = splat<A>(t.gamma[row]), beta = splat<A>(t.beta[row]);
      }
      const Vec<A> grad = load_part<false>(a.grad + base + p, n);
      const Vec<A> g = before_activation<SILU, Vec<A>>(grad, xhat * gamma + beta, slope);
      if (a.grad_scale) {
        store_part<false>(a.grad_scale + base + p, g * xhat, n);
        store_part<false>(a.grad_shift + base + p, g, n);
      }
      Vec<A> dx = g * gamma;
      if (a.mean_g) dx = dx - mean_g - xhat * mean_gx;  // of an infinite x as well
      dx = dx * rstd;
      store_part<false>(a.grad_x + base + p, dx, n);
      noise_sum += dx * nv;  // nv is zero past the end
      if ((i & 255) == 255) noise_total += lane_sum<A>(noise_sum), noise_sum = zero;
    }
    if (a.noise_sums) a.noise_sums[plane] = noise_total + lane_sum<A>(noise_sum);
  }
}

template <typename T, typename A>
void input_planes(const RegionNorm<T, A>& a, int64_t begin, int64_t end) {
  if (is_even(a) && a.mean_g) {
    a.silu ? input_even_planes<T, A, true, true>(a, begin, end) : input_even_planes<T, A, false, true>(a, begin, end);
  } else if (is_even(a)) {
    a.silu ? input_even_planes<T, A, true, false>(a, begin, end) : input_even_planes<T, A, false, false>(a, begin, end);
  } else {
    a.silu ? input_planes_activated<T, A, true>(a, begin, end) : input_planes_activated<T, A, false>(a, begin, end);
  }
}

// One unit after another, whose x, grad and grad_x stay in a cache. Only what has the type of the sums is kept: another one
// would round g' once more.
template <typename T, typename A, bool SILU>
MIXSYN_INLINE void backward_units(const RegionNorm<T, A>& a, int64_t shared, A count, int64_t begin, int64_t end) {
  constexpr bool KEEP = SILU && std::is_same_v<T, A>;
  constexpr int64_t kBlock = 4096;  // as reduce_even_planes
  for (int64_t unit = begin * shared; unit < end * shared; unit += shared) {
    A mean_g = 0, mean_gx = 0;
    for (int64_t plane = unit; plane < unit + shared; ++plane) {
      const EvenPlane<A> e = even_plane(a, plane / a.channels, plane % a.channels);
      A* sums = a.sums + 2 * plane;
      sums[0] = 0, sums[1] = 0;
      for (int64_t q = 0; q < a.pixels; q += kBlock) {
        const int64_t base = plane * a.pixels + q, n = a.pixels - q < kBlock ? a.pixels - q : kBlock;
        sum_even<T, A, SILU, KEEP>(e, a.x + base, a.grad + base, n, sums, a.grad_x + base);
      }
      sums[1] *= e.rstd;
      mean_g += sums[0] * e.gamma, mean_gx += sums[1] * e.gamma;
    }
    mean_g /= count, mean_gx /= count;
    for (int64_t plane = unit; plane < unit + shared; ++plane) {
      EvenPlane<A> e = even_plane(a, plane / a.channels, plane % a.channels);
      const int64_t base = plane * a.pixels;
      if (KEEP) e.slope = 1;  // what is kept has passed the activation
      input_even<T, A, SILU && !KEEP, true>(e, mean_g, mean_gx, a.x + base, (KEEP ? a.grad_x : a.grad) + base,
                                            a.grad_x + base, a.pixels);
    }
  }
}
template <typename T, typename A>
void backward_planes(const RegionNorm<T, A>& a, int64_t shared, A count, int64_t begin, int64_t end) {
  a.silu ? backward_units<T, A, true>(a, shared, count, begin, end)
         : backward_units<T, A, false>(a, shared, count, begin, end);
}

template <typename T, typename A>
const RegionNormKernels<T, A>& region_norm_kernels() {
  static const RegionNormKernels<T, A> table = {stats_tiles<T, A>,   apply_pixels<T, A>, reduce_tiles<T, A>,
                                                input_chunks<T, A>,  stats_planes<T, A>, apply_planes<T, A>,
                                                reduce_planes<T, A>, input_planes<T, A>, backward_planes<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(RegionNormKernels, region_norm_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
