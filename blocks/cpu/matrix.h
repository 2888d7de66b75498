/* Products with a matrix [out, in] that is read from memory once, whatever the number of tokens. */
#include "crew.h"
#include "vectors.h"

enum { ROWS = 4 };              /* a tile: ROWS rows of a matrix by at most TOKENS tokens */
enum { SHARE_BYTES = 1 << 17 }; /* of a matrix: about what a thread takes at a time, some ten microseconds' reading */

/* out[t][r] for ROWS rows of weight and n_tokens of x: n numbers each, x's rows x_step apart, out's out_step. Meanwhile
 * n_ahead rows are fetched from memory: its own prefetching waits while rows are multiplied that are here already. */
static inline __attribute__((always_inline)) void tile(const num *weight, int64_t n, const float *x, int64_t x_step,
                                                       float *out, int64_t out_step, const int n_tokens,
                                                       const num *ahead, const int n_ahead) {
    vec sums[ROWS][TOKENS];
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < n_tokens; t++) sums[r][t] = splat(0);
    for (int64_t i = 0; i < n; i += LANES) {
        vec w[ROWS];
        for (int r = 0; r < ROWS; r++) w[r] = load(weight + r * n + i);
        for (int r = 0; r < n_ahead; r++) __builtin_prefetch(ahead + r * n + i);
        for (int t = 0; t < n_tokens; t++) {
            vec v = *(const vec *)(x + t * x_step + i);
            for (int r = 0; r < ROWS; r++) sums[r][t] += w[r] * v;
        }
    }
    for (int t = 0; t < n_tokens; t++)
        *(four *)(out + t * out_step) = sums_of(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
}

static inline __attribute__((always_inline)) void fetching(const num *weight, int64_t n, const float *x, int64_t x_step,
                                                           float *out, int64_t out_step, const int n_tokens,
                                                           const num *ahead, int64_t n_ahead) {
    if (n_ahead == 4) tile(weight, n, x, x_step, out, out_step, n_tokens, ahead, 4);
    else if (n_ahead == 2) tile(weight, n, x, x_step, out, out_step, n_tokens, ahead, 2);
    else if (n_ahead == 1) tile(weight, n, x, x_step, out, out_step, n_tokens, ahead, 1);
    else tile(weight, n, x, x_step, out, out_step, n_tokens, ahead, 0);
}

/* The same for any number of tokens; `ahead`: the ROWS rows that come next, or null. */
static inline void tiles(const num *weight, int64_t n, const float *x, int64_t x_step, float *out, int64_t out_step,
                         int64_t tokens, const num *ahead) {
    int64_t groups = (tokens + TOKENS - 1) / TOKENS, left = ahead ? ROWS : 0;
    for (int64_t each = groups == 1 ? 4 : groups < 4 ? 2 : 1; tokens > 0; tokens -= TOKENS) {
        int64_t fetched = left ? each : 0;
        if (tokens >= TOKENS) fetching(weight, n, x, x_step, out, out_step, TOKENS, ahead, fetched);
        else if (tokens == 3) fetching(weight, n, x, x_step, out, out_step, 3 < TOKENS ? 3 : TOKENS, ahead, fetched);
        else if (tokens == 2) fetching(weight, n, x, x_step, out, out_step, 2, ahead, fetched);
        else fetching(weight, n, x, x_step, out, out_step, 1, ahead, fetched);
        ahead += fetched * n, left -= fetched;
        x += TOKENS * x_step, out += TOKENS * out_step;
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

/* Its rows [from, to). */
static void multiply(const Product *p, int64_t from, int64_t to) {
    for (int64_t r = from; r < to; r += ROWS) {
        const num *weight = p->weight + r * p->n;
        tiles(weight, p->n, p->x, p->x_step, p->out + r, p->rows, p->tokens, weight + ROWS * p->n);
        if (p->bias)
            for (int64_t t = 0; t < p->tokens; t++)
                for (int i = 0; i < ROWS; i++) p->out[t * p->rows + r + i] += p->bias[r + i];
    }
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
