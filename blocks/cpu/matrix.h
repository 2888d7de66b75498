/* Products with a matrix [out, in] that is read from memory once, whatever the number of tokens. */
#include "vectors.h"

enum { ROWS = 4 }; /* a tile: ROWS rows of a matrix by at most TOKENS tokens */

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
static void multiply(const num *weight, const float *bias, int64_t rows, int64_t n, const float *x, int64_t x_step,
                     float *out, int64_t tokens) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r += ROWS) {
        tiles(weight + r * n, n, x, x_step, out + r, rows, tokens, weight + (r + ROWS) * n);
        if (bias)
            for (int64_t t = 0; t < tokens; t++)
                for (int i = 0; i < ROWS; i++) out[t * rows + r + i] += bias[r + i];
    }
}
