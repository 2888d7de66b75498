/* Products with a matrix [out, in] that is read from memory once, whatever the number of tokens. */
#include "crew.h"
#include "vectors.h"

enum { ROWS = 4 };              /* a tile: ROWS rows of a matrix by at most TOKENS tokens */
enum { SHARE_BYTES = 1 << 17 }; /* of a matrix: about what a thread takes at a time, some ten microseconds' reading */
enum { CHUNK = 1 << 10 };       /* numbers of which ROWS rows stay in the first cache */
enum { MOST_TILES = 16 };       /* of one chunk, side by side */

/* Adds to sums what ROWS rows of weight, `apart` numbers from one to the next, make with n_tokens of x, its rows x_step
 * apart, of n numbers each. Meanwhile n_ahead rows are fetched from memory. */
static inline __attribute__((always_inline)) void tile(const num *weight, int64_t apart, int64_t n, const float *x,
                                                       int64_t x_step, vec sums[ROWS][TOKENS], const int n_tokens,
                                                       const num *ahead, const int n_ahead) {
    vec found[ROWS][TOKENS];
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < n_tokens; t++) found[r][t] = sums[r][t];
    for (int64_t i = 0; i < n; i += LANES) {
        vec v[TOKENS];
        for (int t = 0; t < n_tokens; t++) v[t] = *(const vec *)(x + t * x_step + i);
        for (int r = 0; r < n_ahead; r++) __builtin_prefetch(ahead + r * apart + i);
        for (int r = 0; r < ROWS; r++) {
            vec w = load(weight + r * apart + i);
            for (int t = 0; t < n_tokens; t++) found[r][t] += w * v[t];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < n_tokens; t++) sums[r][t] = found[r][t];
}

static inline __attribute__((always_inline)) void fetching(const num *weight, int64_t apart, int64_t n, const float *x,
                                                           int64_t x_step, vec sums[ROWS][TOKENS], const int n_tokens,
                                                           const num *ahead, int64_t n_ahead) {
    if (n_ahead == 4) tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 4);
    else if (n_ahead == 2) tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 2);
    else if (n_ahead == 1) tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 1);
    else tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 0);
}

/* Which rows a tile takes. Far: rows that lie a quarter of a share apart, a chunk of their numbers at a time; or else
 * rows side by side, whole, while those that come next are asked for.
 *
 * An EPYC (Zen) has 1.6 times as much from memory with far rows of 512 numbers, and a tenth more with rows of 4,096: its
 * own prefetching follows each of four rows by itself. It waits, though, while several tiles are made of what is here
 * already, which lasts long enough to tell where rows are short. A Xeon (Sapphire Rapids) loses a tenth. */
static inline int far_rows(void) {
#ifdef FAR_ROWS
    return FAR_ROWS;
#elif defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

/* out[t][r], t's out_step and r's out_apart from one to the next, for ROWS rows of weight, n numbers each, `apart` from
 * one to the next, and MOST_TILES * TOKENS tokens of x at most; `chunk` numbers of all of them at a time. next: the
 * first of the rows that are to be fetched meanwhile, or null. */
static inline void tiles(const num *weight, int64_t apart, int64_t n, int64_t chunk, const float *x, int64_t x_step,
                         float *out, int64_t out_step, int64_t out_apart, int64_t tokens, const num *next) {
    vec sums[MOST_TILES][ROWS][TOKENS];
    int64_t groups = (tokens + TOKENS - 1) / TOKENS, each = groups == 1 ? 4 : groups < 4 ? 2 : 1;
    memset(sums, 0, groups * sizeof *sums);
    for (int64_t i = 0; i < n; i += chunk) {
        int64_t size = n - i < chunk ? n - i : chunk, left = next ? ROWS : 0;
        const num *ahead = next ? next + i : 0;
        for (int64_t g = 0; g < groups; g++) {
            const float *given = x + g * TOKENS * x_step + i;
            int64_t now = tokens - g * TOKENS, fetched = left ? each : 0;
            if (now >= TOKENS) fetching(weight + i, apart, size, given, x_step, sums[g], TOKENS, ahead, fetched);
            else if (now == 2) fetching(weight + i, apart, size, given, x_step, sums[g], 2, ahead, fetched);
            else if (now == 1) fetching(weight + i, apart, size, given, x_step, sums[g], 1, ahead, fetched);
            else fetching(weight + i, apart, size, given, x_step, sums[g], 3 < TOKENS ? 3 : TOKENS, ahead, fetched);
            if (fetched) ahead += fetched * apart, left -= fetched;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        vec(*of)[TOKENS] = sums[t / TOKENS];
        int64_t k = t % TOKENS;
        four found = sums_of(of[0][k], of[1][k], of[2][k], of[3][k]);
        for (int r = 0; r < ROWS; r++) out[t * out_step + r * out_apart] = found[r];
    }
}

/* out [tokens, rows] = x [tokens, n], its rows x_step apart, * weight [rows, n] transposed, and bias. */
typedef struct {
    const num *weight;
    const float *bias; /* or null */
    int64_t rows, n;
    const float *x;
    int64_t x_step;
    float *out;
    int64_t tokens;
} Product;

/* Its rows [from, to), a multiple of ROWS. */
static void multiply(const Product *p, int64_t from, int64_t to) {
    int is_far = far_rows(), is_told = p->tokens > TOKENS && p->n <= CHUNK;
    int64_t most = MOST_TILES * TOKENS, count = (to - from) / ROWS, apart = is_far ? count : 1;
    int64_t step = is_far ? 1 : ROWS;
    for (int64_t i = 0; i < count; i++)
        for (int64_t t = 0, r = from + i * step; t < p->tokens; t += most) {
            const num *weight = p->weight + r * p->n;
            tiles(weight, apart * p->n, p->n, is_far ? CHUNK : p->n, p->x + t * p->x_step, p->x_step,
                  p->out + t * p->rows + r, p->rows, apart, p->tokens - t < most ? p->tokens - t : most,
                  !is_far || (is_told && i + 1 < count) ? weight + step * p->n : 0);
        }
    for (int64_t t = 0; p->bias && t < p->tokens; t++)
        for (int64_t r = from; r < to; r++) p->out[t * p->rows + r] += p->bias[r];
}

/* Rows of n numbers in a share: whole vectors of results. */
static int64_t share_rows(int64_t n) {
    int64_t rows = SHARE_BYTES / (n * (int64_t)sizeof(num)) / LANES * LANES;
    return rows > LANES ? rows : LANES;
}

static int64_t shares(int64_t rows, int64_t n) { return (rows + share_rows(n) - 1) / share_rows(n); }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void multiply_share(const void *product, int64_t index, int64_t who) {
    (void)who;
    const Product *p = product;
    int64_t size = share_rows(p->n), from = index * size;
    multiply(p, from, least(p->rows, from + size));
}

static void multiply_all(int64_t threads, Product p) { each(threads, shares(p.rows, p.n), multiply_share, &p); }
