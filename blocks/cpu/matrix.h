/* Products with a matrix [out, in] that is read from memory once, whatever the number of tokens. */
#include "crew.h"
#include "vectors.h"

enum { ROWS = 4 };              /* a tile: ROWS rows of a matrix by at most TOKENS tokens */
enum { SHARE_BYTES = 1 << 17 }; /* of a matrix: about what a thread takes at a time, some ten microseconds' reading */
enum { CHUNK = 1 << 10 };       /* numbers of a row for which tiles of ROWS rows stay in the first cache */
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
    if (n_ahead == 2) tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 2);
    else if (n_ahead == 1) tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 1);
    else tile(weight, apart, n, x, x_step, sums, n_tokens, ahead, 0);
}

/* out[t][r], t's out_step and r's out_apart from one to the next, for ROWS rows of weight, n numbers each, `apart` from
 * one to the next, and MOST_TILES * TOKENS tokens of x at most. next: whether more such rows come right after these.
 *
 * Rows that lie far apart come from memory faster than rows side by side: a processor's own prefetching follows each of
 * them by itself, and begins anew with each page. It waits, though, while several tiles are made of what is here
 * already, which lasts long enough to tell where rows are short: those that come next are then asked for. */
static inline void tiles(const num *weight, int64_t apart, int64_t n, const float *x, int64_t x_step, float *out,
                         int64_t out_step, int64_t out_apart, int64_t tokens, int next) {
    vec sums[MOST_TILES][ROWS][TOKENS];
    int64_t groups = (tokens + TOKENS - 1) / TOKENS, each = groups < 4 ? 2 : 1;
    memset(sums, 0, groups * sizeof *sums);
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t size = n - i < CHUNK ? n - i : CHUNK, left = next && groups > 1 && n <= CHUNK ? ROWS : 0;
        const num *at = weight + i, *ahead = at + n;
        for (int64_t g = 0; g < groups; g++) {
            const float *given = x + g * TOKENS * x_step + i;
            int64_t now = tokens - g * TOKENS, fetched = left ? each : 0;
            if (now >= TOKENS) fetching(at, apart, size, given, x_step, sums[g], TOKENS, ahead, fetched);
            else if (now == 2) fetching(at, apart, size, given, x_step, sums[g], 2, ahead, fetched);
            else if (now == 1) fetching(at, apart, size, given, x_step, sums[g], 1, ahead, fetched);
            else fetching(at, apart, size, given, x_step, sums[g], 3 < TOKENS ? 3 : TOKENS, ahead, fetched);
            ahead += fetched * apart, left -= fetched;
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
    int64_t apart = (to - from) / ROWS, most = MOST_TILES * TOKENS;
    for (int64_t r = from; r < from + apart; r++)
        for (int64_t t = 0; t < p->tokens; t += most) {
            int64_t tokens = p->tokens - t < most ? p->tokens - t : most;
            tiles(p->weight + r * p->n, apart * p->n, p->n, p->x + t * p->x_step, p->x_step, p->out + t * p->rows + r,
                  p->rows, apart, tokens, r + 1 < from + apart);
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
