/* Exact attention within the tiles of a grid of tokens. Scores never leave the processor's caches.

   The score of query (i, j) and key (y, x) is q.k / sqrt(d) plus a part that depends on position:
   in SAM's ViT q.R_h[i][y] + q.R_w[j][x], in TinyViT one bias for each pair.

   A task is one head of one tile (a window, or the whole grid) of one image. The threads of torch
   share the tasks. A task takes some query rows at a time: it computes their scores with all keys,
   uses them, and overwrites them.

   Keys are padded so that products need no remainder: to whole panels of NR keys, and in the ViT
   each row of a tile to whole vectors. The score of a padding lane is FAR, so its weight is 0.

   The softmax is in base 2, because 2^x is cheaper than e^x; the scores are multiplied by LOG2E.

   The file is written with the vectors of GNU C, which gcc and clang have, and compiled once per
   instruction set (pyproject.toml). kernels.py is its only caller; it checks all arguments, and has
   the same number INTERFACE. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000 /* one build serves Python 3.11 and all later ones */
#include <Python.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16 /* floats of a vector */
#define MR 12    /* rows of a product; MR x 2 vectors of sums stay in registers */
#else
#define LANES 8
#define MR 6
#endif
#define NR (2 * LANES)         /* columns of a product, which is the width of a panel */
#define STEP (MR / 3)          /* rows are taken in groups of MR, 2 STEP or STEP */
#define FORWARD_ROWS (2 * MR)  /* forward holds the scores of these query rows with all keys */
#define BACKWARD_ROWS (4 * MR) /* backward holds these query rows with BACKWARD_PANELS of keys */
#define BACKWARD_PANELS 6
#define LOG2E 1.44269504f
#define FAR -1e30f
#define INTERFACE 2 /* version of the arguments and results; kernels.py has the same number */
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Threads come from the OpenMP that torch has loaded already: its symbols are visible to all. A
   library of our own would bring a second pool of threads, and no compiler needs to know OpenMP.
   libgomp and LLVM's libomp both have these two functions. */
extern void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

/* The operands of one call. Values are fp32, or bf16 if ``half`` is set. Tables, bias, norms and
   grad_fill are always fp32. */
typedef struct {
  const void *qkv;         /* (b, h, w, 3, heads, d) or (b, h, w, heads, 3, d) */
  const void *fill;        /* the same of a padded token, without b, h, w; or NULL */
  const float *rows;       /* (th, d, th padded) [query][channel][key] */
  const float *columns;    /* (tw, d, tw padded) */
  const float *to_rows;    /* (th, th, d) [query][key][channel], for backward */
  const float *to_columns; /* (tw, tw, d), for backward */
  const float *bias;       /* (heads, th * tw, keys) in base 2, instead of tables; or NULL */
  const void *grad;        /* (b, h, w, heads, d), like out */
  void *out, *grad_qkv;    /* grad_qkv has the layout of qkv */
  float *norms;            /* (b, h, w, heads, 2): the largest score and 1 / sum of each query */
  float *grad_fill;        /* (tasks, 2, d): gradients of k and v of the padded tokens */
  float scale;             /* 1 / sqrt(d) */
  long of_part, of_head;   /* distance between q, k and v of a token, and between its heads */
  long b, h, w, heads, d, th, tw, half;
} Problem;

typedef struct {
  long image, top, left, head, height, width; /* height and width of the part in the grid */
} Task;

static long up(long n, long to) { return (n + to - 1) / to * to; }
static long smaller(long a, long b) { return a < b ? a : b; }
static long down(const Problem *p) { return (p->h + p->th - 1) / p->th; }
static long across(const Problem *p) { return (p->w + p->tw - 1) / p->tw; }
static long tasks(const Problem *p) { return p->b * down(p) * across(p) * p->heads; }
/* Lanes from one row of keys to the next. */
static long pitch(const Problem *p) { return p->bias ? p->tw : up(p->tw, LANES); }
/* Length of a row of rel_h. One more entry than rows serves the lanes that fill the last panel. */
static long reach(const Problem *p) { return up(p->th + 1, LANES); }
static long keys(const Problem *p) { return up(p->th * pitch(p), NR); } /* lanes of all keys */
static long depth(const Problem *p) { return up(p->d, NR); }

static Task task(const Problem *p, long index) {
  Task t = {.head = index % p->heads};
  index /= p->heads;
  t.left = index % across(p) * p->tw;
  index /= across(p);
  t.top = index % down(p) * p->th;
  t.image = index / down(p);
  t.height = smaller(p->h - t.top, p->th);
  t.width = smaller(p->w - t.left, p->tw);
  return t;
}

/* Values ------------------------------------------------------------------------------------ */

INLINE float widen(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
INLINE uint16_t narrow(float value) { /* to the nearest, ties to even */
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40; /* NaN */
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static void load(const Problem *p, const void *from, long at, float *to) {
  if (p->half)
    for (long c = 0; c < p->d; c++) to[c] = widen(((const uint16_t *)from)[at + c]);
  else
    memcpy(to, (const float *)from + at, p->d * sizeof(float));
}
static void store(const Problem *p, void *to, long at, const float *from) {
  if (p->half)
    for (long c = 0; c < p->d; c++) ((uint16_t *)to)[at + c] = narrow(from[c]);
  else
    memcpy((float *)to + at, from, p->d * sizeof(float));
}
/* Index of token (y, x) of a tile in a tensor (b, h, w, heads), and of a part of it in qkv. */
static long place(const Problem *p, const Task *t, long y, long x) {
  return ((t->image * p->h + t->top + y) * p->w + t->left + x) * p->heads + t->head;
}
static long inside(const Problem *p, const Task *t, long part) {
  return part * p->of_part + t->head * p->of_head;
}
static long slice(const Problem *p, const Task *t, long y, long x, long part) {
  return ((t->image * p->h + t->top + y) * p->w + t->left + x) * 3 * p->heads * p->d +
         inside(p, t, part);
}
static void load_key(const Problem *p, const Task *t, long y, long x, long part, float *to) {
  if (y < t->height && x < t->width)
    load(p, p->qkv, slice(p, t, y, x, part), to);
  else
    load(p, p->fill, inside(p, t, part), to);
}

/* Vectors ----------------------------------------------------------------------------------- */

INLINE vec splat(float value) { return (vec){0} + value; }
INLINE vec at(const float *from) { /* unaligned load */
  vec value;
  memcpy(&value, from, sizeof(vec));
  return value;
}
INLINE vec higher(vec a, vec b) { /* maximum; NaN where a is NaN */
#ifdef __AVX512F__
  return (vec)_mm512_max_ps((__m512)b, (__m512)a);
#else
  return (vec)_mm256_max_ps((__m256)b, (__m256)a);
#endif
}
#ifdef __clang__
#define SHUFFLED(V, ...) __builtin_shufflevector(V, V, __VA_ARGS__)
#else
#define SHUFFLED(V, ...) __builtin_shuffle(V, (ivec){__VA_ARGS__})
#endif
/* Lane i comes from lane i ^ BY, a constant. */
#if LANES == 16
#define TURNED(V, BY)                                                                       \
  SHUFFLED(V, 0 ^ BY, 1 ^ BY, 2 ^ BY, 3 ^ BY, 4 ^ BY, 5 ^ BY, 6 ^ BY, 7 ^ BY, 8 ^ BY, 9 ^ BY, \
           10 ^ BY, 11 ^ BY, 12 ^ BY, 13 ^ BY, 14 ^ BY, 15 ^ BY)
#else
#define TURNED(V, BY) \
  SHUFFLED(V, 0 ^ BY, 1 ^ BY, 2 ^ BY, 3 ^ BY, 4 ^ BY, 5 ^ BY, 6 ^ BY, 7 ^ BY)
#endif
INLINE float total(vec v) {
#if LANES == 16
  v += TURNED(v, 8);
#endif
  v += TURNED(v, 4), v += TURNED(v, 2), v += TURNED(v, 1);
  return v[0];
}
INLINE float largest(vec v) {
#if LANES == 16
  v = higher(v, TURNED(v, 8));
#endif
  v = higher(v, TURNED(v, 4)), v = higher(v, TURNED(v, 2)), v = higher(v, TURNED(v, 1));
  return v[0];
}
/* 2^t for t <= 127, with a relative error of 6e-8. Results below 2^-126 are some number from 0 to
   2^-126. Any NaN gives NaN. t is split into a whole number and a rest f in [-0.5, 0.5], of which a
   polynomial of degree 6 is taken. */
INLINE vec exp2_of(vec t) {
#ifdef __AVX512F__
  t = higher(t, splat(FAR)); /* -infinity - (-infinity) would be NaN */
  const vec whole = (vec)_mm512_roundscale_ps((__m512)t, 0), f = t - whole;
#else
  /* Adding 1.5 * 2^23 rounds to a whole number, because fp32 has no fractions there. 127 is the
     exponent bias of fp32. */
  const vec magic = splat(12582912.0f + 127.0f);
  t = higher(t, splat(-126.0f));
  const vec moved = t + magic, f = t - (moved - magic);
#endif
  vec e = splat(1.53375775e-4f) * f + splat(1.33998599e-3f);
  e = e * f + splat(9.61851981e-3f);
  e = e * f + splat(5.55032901e-2f);
  e = e * f + splat(2.40226462e-1f);
  e = e * f + splat(6.93147182e-1f);
  e = e * f + splat(1.0f);
#ifdef __AVX512F__
  return (vec)_mm512_scalef_ps((__m512)e, (__m512)whole);
#else
  return e * (vec)((ivec)moved << 23); /* a product; adding to the exponent bits would lose NaNs */
#endif
}

/* Products ---------------------------------------------------------------------------------- */

/* sums[m] += sum over i < count of a[m * row + i * step] * b[i * NR ...], for m < M.
   M is a constant after inlining, so sums stay in registers. */
INLINE void product(const int M, const float *a, long row, long step, const float *b, long count,
                    vec sums[][2]) {
  for (long i = 0; i < count; i++) {
    const vec left = *(const vec *)(b + i * NR), right = *(const vec *)(b + i * NR + LANES);
    UNROLL for (int m = 0; m < M; m++) {
      const float value = a[m * row + i * step];
      sums[m][0] += value * left;
      sums[m][1] += value * right;
    }
  }
}
#ifdef __AVX512BF16__
/* The same for bf16, which the processor multiplies in pairs: b is (count / 2, NR, 2). */
INLINE void product_half(const int M, const uint16_t *a, long row, const uint16_t *b, long count,
                         vec sums[][2]) {
  for (long i = 0; i < count; i += 2) {
    const __m512bh left = (__m512bh)_mm512_load_si512(b + i * NR);
    const __m512bh right = (__m512bh)_mm512_load_si512(b + i * NR + 2 * LANES);
    UNROLL for (int m = 0; m < M; m++) {
      int32_t pair;
      memcpy(&pair, a + m * row + i, 4);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
      sums[m][0] = (vec)_mm512_dpbf16_ps((__m512)sums[m][0], value, left);
      sums[m][1] = (vec)_mm512_dpbf16_ps((__m512)sums[m][1], value, right);
    }
  }
}
#else
#define product_half(M, a, row, b, count, sums) __builtin_unreachable() /* run refuses bf16 */
#endif
INLINE void clear(const int M, vec sums[][2]) {
  UNROLL for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = splat(0);
}
INLINE void put(const int M, vec sums[][2], float *to, long row) {
  UNROLL for (int m = 0; m < M; m++) {
    *(vec *)(to + m * row) = sums[m][0];
    *(vec *)(to + m * row + LANES) = sums[m][1];
  }
}
/* c (M, NR) += a b, with c in memory. */
INLINE void accumulate(const int M, const float *a, long row, long step, const float *b, long count,
                       float *c) {
  vec sums[MR][2];
  UNROLL for (int m = 0; m < M; m++) {
    sums[m][0] = *(vec *)(c + m * NR);
    sums[m][1] = *(vec *)(c + m * NR + LANES);
  }
  product(M, a, row, step, b, count, sums);
  put(M, sums, c, NR);
}
static long group(long left) { return left >= MR ? MR : left >= 2 * STEP ? 2 * STEP : STEP; }
/* Do CALL(size) with a constant size for each group of rows, from m = 0 on. */
#define BY_GROUPS(count, CALL)                     \
  for (long m = 0, size; m < (count); m += size) { \
    size = group((count) - m);                     \
    if (size == MR) {                              \
      CALL(MR);                                    \
    } else if (size == 2 * STEP) {                 \
      CALL(2 * STEP);                              \
    } else {                                       \
      CALL(STEP);                                  \
    }                                              \
  }

/* Position and layout ----------------------------------------------------------------------- */

/* The sum over c < count of values[c] * table[c * row ...]; four sums hide an add's latency. */
INLINE vec mixed(const float *values, long count, const float *table, long row) {
  vec sums[4] = {splat(0), splat(0), splat(0), splat(0)};
  long c = 0;
  for (; c + 4 <= count; c += 4)
    UNROLL for (int i = 0; i < 4; i++) sums[i] += values[c + i] * at(table + (c + i) * row);
  for (; c < count; c++) sums[0] += values[c] * at(table + c * row);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}
/* The positional scores of some queries in the ViT, by row and by column of keys. */
typedef struct {
  float *h, *w; /* (queries, reach) and (queries, pitch) */
} Position;

static void position(const Problem *p, const float *q, long y, long x, float *rel_h, float *rel_w) {
  const long d = p->d, near = up(p->th, LANES), wide = pitch(p);
  for (long v = 0; v < near; v += LANES)
    *(vec *)(rel_h + v) = LOG2E * mixed(q, d, p->rows + y * d * near + v, near);
  for (long v = 0; v < wide; v += LANES)
    *(vec *)(rel_w + v) = LOG2E * mixed(q, d, p->columns + x * d * wide + v, wide);
  rel_h[p->th] = FAR; /* for the lanes after the last row, which fill the last panel */
  for (long v = p->tw; v < wide; v++) rel_w[v] = FAR;
}
/* Start a row of scores with its positional part: query (y, x), which is the m-th one held, and
   keys [from, to). */
static void begin(const Problem *p, const Task *t, const Position *by, long m, long y, long x,
                  long from, long to, float *row) {
  if (p->bias) {
    memcpy(row, p->bias + ((t->head * p->th + y) * p->tw + x) * keys(p) + from,
           (to - from) * sizeof(float));
    return;
  }
  const float *of_h = by->h + m * reach(p), *of_w = by->w + m * pitch(p);
  long key_y = from / pitch(p), key_x = from % pitch(p);
  for (long key = from; key < to; key += LANES) {
    *(vec *)(row + key - from) = of_h[key_y] + *(const vec *)(of_w + key_x);
    key_x += LANES;
    if (key_x == pitch(p)) key_x = 0, key_y++;
  }
}

/* Copy k (part 1) or v (part 2) of a tile into panels.
   by_key is (keys / NR, d, NR): a panel has NR keys; for the products q k^T.
   by_channel is (depth / NR, keys, NR): a panel has NR channels; for the products p v. */
static void lay(const Problem *p, const Task *t, long part, float *by_key, float *by_channel) {
  const long n = keys(p), d = p->d;
  float value[d];
  if (by_key) memset(by_key, 0, n * d * sizeof(float));
  if (by_channel) memset(by_channel, 0, n * depth(p) * sizeof(float));
  for (long y = 0; y < p->th; y++)
    for (long x = 0; x < p->tw; x++) {
      const long key = y * pitch(p) + x;
      load_key(p, t, y, x, part, value);
      for (long c = 0; by_key && c < d; c++) by_key[(key / NR * d + c) * NR + key % NR] = value[c];
      for (long c = 0; by_channel && c < d; c++)
        by_channel[(c / NR * n + key) * NR + c % NR] = value[c];
    }
}
/* The same in bf16. k has pairs of channels, (d / 2, NR, 2) in each panel, and v has pairs of keys,
   (keys / 2, NR, 2). */
static void lay_half(const Problem *p, const Task *t, uint16_t *k, uint16_t *v) {
  const long n = keys(p), d = p->d;
  memset(k, 0, n * d * 2);
  memset(v, 0, n * depth(p) * 2);
  for (long y = 0; y < p->th; y++)
    for (long x = 0; x < p->tw; x++) {
      const long key = y * pitch(p) + x, in = y < t->height && x < t->width;
      const uint16_t *from = in ? p->qkv : p->fill;
      const uint16_t *of_k = from + (in ? slice(p, t, y, x, 1) : inside(p, t, 1)),
                     *of_v = of_k + p->of_part;
      for (long c = 0; c < d; c++) {
        k[(key / NR * d + c / 2 * 2) * NR + key % NR * 2 + c % 2] = of_k[c];
        v[(c / NR * n + key / 2 * 2) * NR + c % NR * 2 + key % 2] = of_v[c];
      }
    }
}
static float *scratch(float **space, long floats) {
  float *start = *space;
  *space += up(floats, 16);
  return start;
}

/* Forward ----------------------------------------------------------------------------------- */

static long forward_room(const Problem *p) {
  const long row = keys(p) + 16 + up(p->d, 16) + reach(p) + up(pitch(p), 16) + LANES + depth(p);
  return keys(p) * (p->d + depth(p)) + FORWARD_ROWS * row + 64;
}

/* Turn a row of scores into weights 2^(score - most) in place, and return their sum. The weights
   are not normalised. In bf16 they take half of the space. */
INLINE float weights(float *row, long count, float most, const int half) {
  vec sums = splat(0);
  for (long v = 0; v < count; v += LANES) {
    const vec e = exp2_of(*(vec *)(row + v) - most);
    sums += e;
#ifdef __AVX512BF16__
    if (half) {
      _mm256_storeu_si256((void *)((uint16_t *)row + v), (__m256i)_mm512_cvtneps_pbh((__m512)e));
      continue;
    }
#endif
    *(vec *)(row + v) = e;
  }
  return total(sums);
}

INLINE void forward_task(const Problem *p, float *space, const Task *t, const int half) {
  const long n = keys(p), d = p->d, wide = depth(p), ld_q = up(d, 16);
  const long ld = n + 16; /* rows a power of 2 apart would share cache sets */
  float *k = scratch(&space, n * d), *v = scratch(&space, n * wide);
  float *s = scratch(&space, FORWARD_ROWS * ld), *q = scratch(&space, FORWARD_ROWS * ld_q);
  float *most = scratch(&space, FORWARD_ROWS * LANES), *out = scratch(&space, FORWARD_ROWS * wide);
  Position by = {scratch(&space, FORWARD_ROWS * reach(p)),
                 scratch(&space, FORWARD_ROWS * pitch(p))};
  float value[d];
  const float scale = LOG2E * p->scale;
  if (half)
    lay_half(p, t, (uint16_t *)k, (uint16_t *)v);
  else
    lay(p, t, 1, k, NULL), lay(p, t, 2, NULL, v);
  for (long first = 0, count = t->height * t->width; first < count; first += FORWARD_ROWS) {
    const long rows = smaller(FORWARD_ROWS, count - first), held = up(rows, STEP);
    memset(q, 0, held * ld_q * sizeof(float));
    for (long m = 0; m < rows; m++) {
      const long y = (first + m) / t->width, x = (first + m) % t->width;
      load(p, p->qkv, slice(p, t, y, x, 0), value);
      if (!p->bias) position(p, value, y, x, by.h + m * reach(p), by.w + m * pitch(p));
      begin(p, t, &by, m, y, x, 0, n, s + m * ld);
      if (half)
        memcpy((uint16_t *)q + m * ld_q, (const uint16_t *)p->qkv + slice(p, t, y, x, 0), 2 * d);
      else
        memcpy(q + m * ld_q, value, d * sizeof(float));
    }
    memset(s + rows * ld, 0, (held - rows) * ld * sizeof(float)); /* complete a group */
    for (long m = 0; m < held; m++) *(vec *)(most + m * LANES) = splat(FAR);
    for (long panel = 0; panel < n / NR; panel++) {
#define SCORES(M)                                                                             \
  vec sums[MR][2];                                                                            \
  clear(M, sums);                                                                             \
  if (half)                                                                                   \
    product_half(M, (uint16_t *)q + m * ld_q, ld_q, (uint16_t *)k + panel * d * NR, d, sums); \
  else                                                                                        \
    product(M, q + m * ld_q, ld_q, 1, k + panel * d * NR, d, sums);                           \
  UNROLL for (int i = 0; i < M; i++) {                                                        \
    vec *highest = (vec *)(most + (m + i) * LANES);                                           \
    for (int side = 0; side < 2; side++) {                                                    \
      vec *score = (vec *)(s + (m + i) * ld + panel * NR + side * LANES);                     \
      *score += scale * sums[i][side];                                                        \
      *highest = higher(*score, *highest);                                                    \
    }                                                                                         \
  }
      BY_GROUPS(held, SCORES)
    }
    float sum[FORWARD_ROWS];
    for (long m = 0; m < held; m++) {
      const float peak = largest(*(vec *)(most + m * LANES));
      sum[m] = weights(s + m * ld, n, peak, half);
      if (p->norms && m < rows) {
        float *norm = p->norms + 2 * place(p, t, (first + m) / t->width, (first + m) % t->width);
        norm[0] = peak, norm[1] = 1 / sum[m];
      }
    }
    for (long c = 0; c < wide / NR; c++) {
#define VALUES(M)                                                                           \
  vec sums[MR][2];                                                                          \
  clear(M, sums);                                                                           \
  if (half)                                                                                 \
    product_half(M, (uint16_t *)(s + m * ld), 2 * ld, (uint16_t *)v + c * n * NR, n, sums); \
  else                                                                                      \
    product(M, s + m * ld, ld, 1, v + c * n * NR, n, sums);                                 \
  put(M, sums, out + m * wide + c * NR, wide);
      BY_GROUPS(held, VALUES)
    }
    for (long m = 0; m < rows; m++) {
      const long to = place(p, t, (first + m) / t->width, (first + m) % t->width) * d;
      for (long c = 0; c < d; c++) value[c] = out[m * wide + c] / sum[m];
      store(p, p->out, to, value);
    }
  }
}
static void forward_work(const Problem *p, float *space, long index) {
  const Task t = task(p, index);
  if (p->half)
    forward_task(p, space, &t, 1);
  else
    forward_task(p, space, &t, 0);
}

/* Backward, in fp32 arithmetic -------------------------------------------------------------- */

/* What backward holds of a task. Fields named _wide are panels of channels: (depth / NR, n, NR). */
typedef struct {
  float *k, *v, *k_wide, *grad_k, *grad_v; /* (keys, d); grad_k and grad_v are sums over queries */
  float *q, *grad, *q_wide, *grad_wide,
      *grad_q;                 /* (BACKWARD_ROWS, d) for the queries that are held */
  float *delta, *peak, *share; /* (BACKWARD_ROWS) */
  float *weight, *slope;       /* (BACKWARD_ROWS, HELD) for some panels of keys */
  float *slope_h, *slope_w;    /* sums of the slopes by row and by column of keys */
  Position by;
} Held;
#define HELD (BACKWARD_PANELS * NR + 16) /* floats from row to row, no power of 2 */

static long backward_room(const Problem *p) {
  const long row =
      2 * HELD + 2 * up(p->d, 16) + 2 * (reach(p) + up(pitch(p), 16)) + 3 * depth(p) + 48;
  return keys(p) * (2 * p->d + 3 * depth(p)) + BACKWARD_ROWS * row + 256;
}
static Held hold(const Problem *p, float *space) {
  const long n = keys(p), d = p->d, wide = depth(p), R = BACKWARD_ROWS;
  Held held;
  held.k = scratch(&space, n * d), held.v = scratch(&space, n * d);
  held.k_wide = scratch(&space, n * wide);
  held.grad_k = scratch(&space, n * wide), held.grad_v = scratch(&space, n * wide);
  held.q = scratch(&space, R * up(d, 16)), held.grad = scratch(&space, R * up(d, 16));
  held.q_wide = scratch(&space, R * wide), held.grad_wide = scratch(&space, R * wide);
  held.grad_q = scratch(&space, R * wide), held.delta = scratch(&space, R);
  held.peak = scratch(&space, R), held.share = scratch(&space, R);
  held.weight = scratch(&space, R * HELD), held.slope = scratch(&space, R * HELD);
  held.slope_h = scratch(&space, R * reach(p)), held.slope_w = scratch(&space, R * pitch(p));
  held.by.h = scratch(&space, R * reach(p)), held.by.w = scratch(&space, R * pitch(p));
  memset(held.grad_k, 0, n * wide * sizeof(float));
  memset(held.grad_v, 0, n * wide * sizeof(float));
  return held;
}

/* Load queries first to first + rows - 1. The rows after them, which complete a group, are zero and
   contribute nothing. */
static void take_queries(const Problem *p, const Task *t, const Held *held, long first, long rows) {
  const long d = p->d, ld = up(d, 16), R = BACKWARD_ROWS, wide = R * depth(p) * sizeof(float);
  memset(held->q, 0, R * ld * sizeof(float)), memset(held->grad, 0, R * ld * sizeof(float));
  memset(held->q_wide, 0, wide), memset(held->grad_wide, 0, wide), memset(held->grad_q, 0, wide);
  memset(held->delta, 0, R * sizeof(float)), memset(held->peak, 0, R * sizeof(float));
  memset(held->share, 0, R * sizeof(float));
  memset(held->slope_h, 0, R * reach(p) * sizeof(float));
  memset(held->slope_w, 0, R * pitch(p) * sizeof(float));
  for (long m = 0; m < rows; m++) {
    const long y = (first + m) / t->width, x = (first + m) % t->width, cell = place(p, t, y, x);
    float out[d], *q = held->q + m * ld, *grad = held->grad + m * ld;
    load(p, p->qkv, slice(p, t, y, x, 0), q);
    load(p, p->grad, cell * d, grad);
    load(p, p->out, cell * d, out);
    if (!p->bias) position(p, q, y, x, held->by.h + m * reach(p), held->by.w + m * pitch(p));
    held->peak[m] = p->norms[2 * cell], held->share[m] = p->norms[2 * cell + 1];
    for (long c = 0; c < d; c++) {
      held->delta[m] += out[c] * grad[c];
      held->q_wide[(c / NR * R + m) * NR + c % NR] = q[c];
      held->grad_wide[(c / NR * R + m) * NR + c % NR] = grad[c];
    }
  }
}

/* Compute the attention weights of a panel of keys, and the slopes: the gradient of the loss with
   respect to the scores, p * (dp - delta). ``weight`` holds the positional part at first. */
static void make_slopes(const Problem *p, const Held *held, long groups, const float *k,
                        const float *v, float *weight, float *slope) {
  const long d = p->d, ld = up(d, 16);
  const float scale = LOG2E * p->scale;
#define SLOPES(M)                                                           \
  vec sums[MR][2];                                                          \
  clear(M, sums);                                                           \
  product(M, held->q + m * ld, ld, 1, k, d, sums);                          \
  UNROLL for (int i = 0; i < M; i++) for (int side = 0; side < 2; side++) { \
    const vec begun = *(vec *)(weight + (m + i) * HELD + side * LANES);     \
    sums[i][side] = begun + scale * sums[i][side] - held->peak[m + i];      \
    sums[i][side] = held->share[m + i] * exp2_of(sums[i][side]);            \
  }                                                                         \
  put(M, sums, weight + m * HELD, HELD);                                    \
  clear(M, sums);                                                           \
  product(M, held->grad + m * ld, ld, 1, v, d, sums);                       \
  UNROLL for (int i = 0; i < M; i++) for (int side = 0; side < 2; side++) { \
    const vec of = *(vec *)(weight + (m + i) * HELD + side * LANES);        \
    sums[i][side] = of * (sums[i][side] - held->delta[m + i]);              \
  }                                                                         \
  put(M, sums, slope + m * HELD, HELD);
  BY_GROUPS(groups, SLOPES)
}

/* Sum the slopes of keys [from, from + count) by row and by column of keys. */
static void sum_slopes(const Problem *p, const Held *held, long rows, long from, long count) {
  for (long m = 0; m < rows; m++) {
    long y = from / pitch(p), x = from % pitch(p);
    vec in_y = splat(0);
    for (long key = 0; key < count; key += LANES) {
      const vec of = *(vec *)(held->slope + m * HELD + key);
      *(vec *)(held->slope_w + m * pitch(p) + x) += of;
      in_y += of, x += LANES;
      if (x == pitch(p) || key + LANES == count) {
        held->slope_h[m * reach(p) + y++] += total(in_y);
        in_y = splat(0), x = 0;
      }
    }
  }
}

/* Add the contribution of keys [from, from + count) to the gradients of q, k and v:
   dv += p^T grad, dk += slope^T q, dq += slope k. */
static void add_gradients(const Problem *p, const Held *held, long groups, long from, long count) {
  const long n = keys(p), R = BACKWARD_ROWS;
  for (long c = 0; c < depth(p) / NR; c++) {
    const float *grad = held->grad_wide + c * R * NR, *q = held->q_wide + c * R * NR;
    const float *k = held->k_wide + (c * n + from) * NR;
    float *to_v = held->grad_v + (c * n + from) * NR, *to_k = held->grad_k + (c * n + from) * NR;
    float *to_q = held->grad_q + c * R * NR;
#define TO_V(M) accumulate(M, held->weight + m, 1, HELD, grad, groups, to_v + m * NR)
#define TO_K(M) accumulate(M, held->slope + m, 1, HELD, q, groups, to_k + m * NR)
#define TO_Q(M) accumulate(M, held->slope + m * HELD, HELD, 1, k, count, to_q + m * NR)
    BY_GROUPS(count, TO_V)
    BY_GROUPS(count, TO_K)
    BY_GROUPS(groups, TO_Q)
  }
}

static void give_queries(const Problem *p, const Task *t, const Held *held, long first, long rows) {
  const long d = p->d;
  float value[d];
  for (long m = 0; m < rows; m++) {
    const long y = (first + m) / t->width, x = (first + m) % t->width;
    const float *slope_h = held->slope_h + m * reach(p), *slope_w = held->slope_w + m * pitch(p);
    for (long c = 0; c < d; c++)
      value[c] = p->scale * held->grad_q[(c / NR * BACKWARD_ROWS + m) * NR + c % NR];
    for (long i = 0; i < p->th && !p->bias; i++)
      for (long c = 0; c < d; c++) value[c] += slope_h[i] * p->to_rows[(y * p->th + i) * d + c];
    for (long i = 0; i < p->tw && !p->bias; i++)
      for (long c = 0; c < d; c++) value[c] += slope_w[i] * p->to_columns[(x * p->tw + i) * d + c];
    store(p, p->grad_qkv, slice(p, t, y, x, 0), value);
  }
}

/* Write the gradients of k and v. Those of padded tokens are summed into ``padding`` (2, d). */
static void give_keys(const Problem *p, const Task *t, const Held *held, float *padding) {
  const long d = p->d, n = keys(p);
  float value[d];
  memset(padding, 0, 2 * d * sizeof(float));
  for (long y = 0; y < p->th; y++)
    for (long x = 0; x < p->tw; x++)
      for (long part = 1; part < 3; part++) {
        const float *from = (part == 1 ? held->grad_k : held->grad_v) + (y * pitch(p) + x) * NR;
        const float factor = part == 1 ? p->scale : 1;
        for (long c = 0; c < d; c++) value[c] = factor * from[c / NR * n * NR + c % NR];
        if (y < t->height && x < t->width)
          store(p, p->grad_qkv, slice(p, t, y, x, part), value);
        else
          for (long c = 0; c < d; c++) padding[(part - 1) * d + c] += value[c];
      }
}

static void backward_work(const Problem *p, float *space, long index) {
  const Task t = task(p, index);
  const Held held = hold(p, space);
  lay(p, &t, 1, held.k, held.k_wide), lay(p, &t, 2, held.v, NULL);
  for (long first = 0, all = t.height * t.width; first < all; first += BACKWARD_ROWS) {
    const long rows = smaller(BACKWARD_ROWS, all - first), groups = up(rows, STEP);
    take_queries(p, &t, &held, first, rows);
    for (long from = 0; from < keys(p); from += BACKWARD_PANELS * NR) {
      const long count = smaller(BACKWARD_PANELS * NR, keys(p) - from);
      for (long m = 0; m < rows; m++)
        begin(p, &t, &held.by, m, (first + m) / t.width, (first + m) % t.width, from, from + count,
              held.weight + m * HELD);
      memset(held.weight + rows * HELD, 0, (groups - rows) * HELD * sizeof(float));
      for (long key = 0; key < count; key += NR)
        make_slopes(p, &held, groups, held.k + (from + key) * p->d, held.v + (from + key) * p->d,
                    held.weight + key, held.slope + key);
      if (!p->bias) sum_slopes(p, &held, rows, from, count);
      add_gradients(p, &held, groups, from, count);
    }
    give_queries(p, &t, &held, first, rows);
  }
  give_keys(p, &t, &held, p->grad_fill + index * 2 * p->d);
}

/* Python ------------------------------------------------------------------------------------ */

static int has_bf16(void) {
#ifdef __AVX512BF16__
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return 0;
#endif
}

typedef long (*Room)(const Problem *);
typedef void (*Work)(const Problem *, float *, long);

/* What the threads of a call share. */
typedef struct {
  const Problem *problem;
  Work work;
  float *space; /* ``each`` floats a thread */
  long each, next;
} Shared;

static void take_tasks(void *data) {
  Shared *shared = data;
  float *space = shared->space + omp_get_thread_num() * shared->each;
  const long count = tasks(shared->problem);
  for (long i; (i = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < count;)
    shared->work(shared->problem, space, i);
}

/* The arguments are the addresses (OPERANDS in kernels.py), the sizes, the scale and the number of
   threads. */
static PyObject *run(PyObject *args, Room room, Work work) {
  Problem p;
  void *addresses[12];
  PyObject *given;
  int threads;
  if (!PyArg_ParseTuple(args, "O!(llllllllll)fi", &PyTuple_Type, &given, &p.of_part, &p.of_head,
                        &p.b, &p.h, &p.w, &p.heads, &p.d, &p.th, &p.tw, &p.half, &p.scale,
                        &threads))
    return NULL;
  for (int i = 0; i < 12; i++) {
    PyObject *address = PyTuple_GetItem(given, i);
    if (!address) return NULL;
    addresses[i] = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;
  }
  p.qkv = addresses[0], p.fill = addresses[1], p.rows = addresses[2], p.columns = addresses[3];
  p.to_rows = addresses[4], p.to_columns = addresses[5], p.bias = addresses[6],
  p.grad = addresses[7];
  p.out = addresses[8], p.grad_qkv = addresses[9], p.norms = addresses[10];
  p.grad_fill = addresses[11];
  if (p.half && !has_bf16()) {
    PyErr_SetString(PyExc_ValueError, "values must be fp32: no bf16 in this build or processor");
    return NULL;
  }
  const long each = up(room(&p), 16);
  threads = smaller(threads, tasks(&p) + !tasks(&p));
  float *space;
  if (posix_memalign((void **)&space, 64, threads * each * sizeof(float))) return PyErr_NoMemory();
  Shared shared = {&p, work, space, each, 0};
  Py_BEGIN_ALLOW_THREADS;
  if (threads == 1) /* omp_get_thread_num may be another number inside a parallel region */
    for (long i = 0; i < tasks(&p); i++) work(&p, space, i);
  else
    GOMP_parallel(take_tasks, &shared, threads, 0);
  Py_END_ALLOW_THREADS;
  free(space);
  Py_RETURN_NONE;
}
static PyObject *forward(PyObject *self, PyObject *args) {
  return run(args, forward_room, forward_work);
}
static PyObject *backward(PyObject *self, PyObject *args) {
  return run(args, backward_room, backward_work);
}
static PyMethodDef methods[] = {{"forward", forward, METH_VARARGS, NULL},
                                {"backward", backward, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};
#define TEXT2(name) #name
#define TEXT(name) TEXT2(name)
#define INIT2(name) PyInit_##name
#define INIT(name) INIT2(name)
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = TEXT(MODULE), .m_size = 0,
                                        .m_methods = methods};
PyMODINIT_FUNC INIT(MODULE)(void) {
  PyObject *module = PyModule_Create(&definition), *far = PyFloat_FromDouble(FAR);
  if (module && far && !PyModule_AddIntConstant(module, "LANES", LANES) &&
      !PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) &&
      !PyModule_AddIntConstant(module, "BF16", has_bf16()) &&
      !PyModule_AddObjectRef(module, "FAR", far)) {
    Py_DECREF(far);
    return module;
  }
  Py_XDECREF(far);
  Py_XDECREF(module);
  return NULL;
}
