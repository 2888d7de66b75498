/* A short step through Llama-like blocks on the CPU: a few tokens, each weight read from memory once.
 *
 * Matrices are as torch keeps them, [out, in], in float or (-DBF16) bfloat16; all else is float. A token's numbers do
 * not depend on the tokens beside it: every sum is made in one order, whatever the batch. Sizes that are summed over
 * are multiples of LANES, and so is a page. short.py fills the structures, and says what is supported.
 */
#include "matrix.h"

enum { SILU, GELU_TANH, GELU };

typedef struct {
    const num *qkv, *o, *gate_up, *down;
    const float *qkv_bias, *o_bias, *gate_up_bias, *down_bias; /* or null */
    const float *norms[4], *q_norm, *k_norm;                   /* before and after attention and MLP; or null */
    num *keys, *values;                                        /* [kv_heads, slots, head_dim] */
    float eps[4], q_eps, k_eps, scale, softcap, residual;      /* softcap 0: none */
    int64_t hidden, inner, heads, kv_heads, head_dim, rotary_dim, q_norm_width, k_norm_width, window, slots, activation;
    int64_t rotation; /* which of the step's */
} Block;

typedef struct {
    const int32_t *pages; /* those of the token's sequence */
    int64_t position, together; /* how many from here on are of one sequence and attend together: TOKENS at most; or 0 */
} Token;

static void normed(const float *x, const float *weight, float eps, float *out, int64_t n) {
    vec squares = splat(0);
    for (int64_t i = 0; i < n; i += LANES) {
        vec v = *(const vec *)(x + i);
        squares += v * v;
    }
    float by = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; i += LANES) *(vec *)(out + i) = *(const vec *)(x + i) * by * *(const vec *)(weight + i);
}

/* Norms of heads, or of all of them together, in place. */
static void norm_heads(float *x, const float *weight, float eps, int64_t width, int64_t n) {
    for (int64_t i = 0; weight && i < n; i += width) normed(x + i, weight, eps, x + i, width);
}

static void turn(float *heads, int64_t n_heads, int64_t width, int64_t rotary, const float *turns) {
    for (int64_t h = 0; h < n_heads; h++, heads += width)
        for (int64_t i = 0; i < rotary; i += 2) {
            float a = heads[i], b = heads[i + 1], c = turns[i], s = turns[i + 1];
            heads[i] = a * c - b * s;
            heads[i + 1] = a * s + b * c;
        }
}

static void keep(num *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = stored(from[i]);
}

/* One token's queries turned, its keys turned and written with its values. */
static void place(const Block *b, float *qkv, const Token *token, const float *turns, int64_t page) {
    int64_t width = b->head_dim, n_query = b->heads * width, n_key = b->kv_heads * width;
    norm_heads(qkv, b->q_norm, b->q_eps, b->q_norm_width, n_query);
    norm_heads(qkv + n_query, b->k_norm, b->k_eps, b->k_norm_width, n_key);
    turn(qkv, b->heads + b->kv_heads, width, b->rotary_dim, turns);
    int64_t slot = token->pages[token->position / page] * page + token->position % page;
    for (int64_t h = 0; h < b->kv_heads; h++) {
        keep(b->keys + (h * b->slots + slot) * width, qkv + n_query + h * width, width);
        keep(b->values + (h * b->slots + slot) * width, qkv + n_query + n_key + h * width, width);
    }
}

/* Weights of the keys in [start, stop) from their scores, in place; 0 for all others in [first, last). */
static void weigh(const Block *b, float *scores, int64_t first, int64_t start, int64_t stop, int64_t last) {
    float most = -INFINITY;
    for (int64_t i = start; i < stop; i++) {
        float score = scores[i] * b->scale;
        scores[i] = b->softcap > 0 ? b->softcap * tanhf(score / b->softcap) : score;
        most = scores[i] > most ? scores[i] : most;
    }
    for (int64_t i = first; i < start; i++) scores[i] = -INFINITY;
    for (int64_t i = stop; i < last; i++) scores[i] = -INFINITY;
    vec total = splat(0);
    for (int64_t i = first; i < last; i += LANES) {
        vec weight = vexp(*(vec *)(scores + i) - most);
        *(vec *)(scores + i) = weight;
        total += weight;
    }
    float by = 1.0f / sum(total);
    for (int64_t i = first; i < last; i += LANES) *(vec *)(scores + i) *= by;
}

/* out [n_tokens, width] = weights [n_tokens, keys] * values, LANES columns from `column`. */
static inline __attribute__((always_inline)) void blend(const num *values, const int32_t *pages, int64_t page,
                                                        int64_t width, int64_t column, int64_t start, int64_t stop,
                                                        const float *weights, int64_t step, float *out,
                                                        int64_t out_step, const int n_tokens) {
    vec sums[TOKENS];
    for (int t = 0; t < n_tokens; t++) sums[t] = splat(0);
    for (int64_t at = start / page * page; at < stop; at += page) {
        const num *rows = values + pages[at / page] * page * width + column;
        int64_t end = stop - at < page ? stop - at : page;
        for (int64_t i = at < start ? start - at : 0; i < end; i++) {
            vec v = load(rows + i * width);
            for (int t = 0; t < n_tokens; t++) sums[t] += weights[t * step + at + i] * v;
        }
    }
    for (int t = 0; t < n_tokens; t++) *(vec *)(out + t * out_step + column) = sums[t];
}

/* One head of `token->together` tokens of one sequence, `token` the first, over their pages. queries and out: their rows
 * are q_step and out_step apart. scores: `context` for each of them, which is room for whole pages. */
static void attend(const Block *b, const float *queries, int64_t q_step, int64_t head, const Token *token, int64_t page,
                   float *scores, int64_t context, float *out, int64_t out_step) {
    int64_t width = b->head_dim, n = token->together, stop = token->position + n;
    int64_t start = b->window && token->position + 1 > b->window ? token->position + 1 - b->window : 0;
    int64_t first = start / page * page, last = (stop + LANES - 1) / LANES * LANES;
    const num *keys = b->keys + head * b->slots * width, *values = b->values + head * b->slots * width;
    for (int64_t at = first; at < stop; at += page) {
        const num *rows = keys + token->pages[at / page] * page * width;
        for (int64_t i = 0; i < page; i += ROWS)
            tiles(rows + i * width, width, width, width, queries, q_step, scores + at + i, context, 1, n, 0);
    }
    for (int64_t t = 0; t < n; t++) {
        int64_t end = token->position + t + 1;
        int64_t from = b->window && end > b->window ? end - b->window : 0;
        weigh(b, scores + t * context, first, from, end, last);
    }
    for (int64_t i = 0; i < width; i += LANES) {
        if (n == TOKENS)
            blend(values, token->pages, page, width, i, start, stop, scores, context, out, out_step, TOKENS);
        else
            for (int64_t t = 0; t < n; t++)
                blend(values, token->pages, page, width, i, start, stop, scores + t * context, context,
                      out + t * out_step, out_step, 1);
    }
}

static void activate(float *gate, const float *up, int64_t n, int64_t activation) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = *(vec *)(gate + i);
        if (activation == SILU) {
            x = x / (1.0f + vexp(-x));
        } else if (activation == GELU_TANH) {
            x = x / (1.0f + vexp(-1.5957691216f * (x + 0.044715f * x * x * x)));
        } else {
            for (int j = 0; j < LANES; j++) x[j] = 0.5f * x[j] * (1.0f + erff(x[j] * 0.70710678f));
        }
        *(vec *)(gate + i) = x * *(const vec *)(up + i);
    }
}

static void add(const Block *b, float *hidden, float *delta, int after) {
    if (b->norms[after]) normed(delta, b->norms[after], b->eps[after], delta, b->hidden);
    for (int64_t i = 0; i < b->hidden; i += LANES)
        *(vec *)(hidden + i) += b->residual * *(const vec *)(delta + i);
}

/* Floats of room that `step` needs. */
int64_t room(const Block *b, int64_t tokens, int64_t threads, int64_t context) {
    int64_t queries = b->heads * b->head_dim, qkv = queries + 2 * b->kv_heads * b->head_dim;
    return tokens * (2 * b->hidden + qkv + queries + 2 * b->inner) + threads * TOKENS * context;
}

/* A step where it has got to, and its room. */
typedef struct {
    const Block *b;
    const Token *tokens;
    const float *turns; /* the block's rotations */
    int64_t n, page, context;
    float *hidden, *x, *delta, *qkv, *seen, *inner, *scores;
} Step;

static int64_t query_width(const Block *b) { return b->heads * b->head_dim; }

static int64_t qkv_width(const Block *b) { return query_width(b) + 2 * b->kv_heads * b->head_dim; }

/* What follows is `Work` of crew.h on a Step: on token t, or on whatever else is said. */

static void enter(const Step *s, int before, int64_t t) {
    const Block *b = s->b;
    float *x = s->x + t * b->hidden, *hidden = s->hidden + t * b->hidden;
    if (b->norms[before]) normed(hidden, b->norms[before], b->eps[before], x, b->hidden);
    else memcpy(x, hidden, b->hidden * sizeof(float));
}

static void enter_attention(const void *step, int64_t t, int64_t who) {
    (void)who;
    enter(step, 0, t);
}

static void place_one(const void *step, int64_t t, int64_t who) {
    (void)who;
    const Step *s = step;
    place(s->b, s->qkv + t * qkv_width(s->b), s->tokens + t, s->turns + t * s->b->rotary_dim, s->page);
}

/* One head of those that attend together from one token on. */
static void attend_head(const void *step, int64_t index, int64_t who) {
    const Step *s = step;
    const Block *b = s->b;
    int64_t t = index / b->heads, h = index % b->heads, width = qkv_width(b), out_width = query_width(b);
    if (s->tokens[t].together)
        attend(b, s->qkv + t * width + h * b->head_dim, width, h / (b->heads / b->kv_heads), s->tokens + t, s->page,
               s->scores + who * TOKENS * s->context, s->context, s->seen + t * out_width + h * b->head_dim, out_width);
}

static void enter_mlp(const void *step, int64_t t, int64_t who) {
    (void)who;
    const Step *s = step;
    add(s->b, s->hidden + t * s->b->hidden, s->delta + t * s->b->hidden, 1);
    enter(s, 2, t);
}

/* A share of the gate's rows and of those beside them; their product takes the gate's place. */
static void gate_share(const void *step, int64_t index, int64_t who) {
    (void)who;
    const Step *s = step;
    const Block *b = s->b;
    Product p = {b->gate_up, b->gate_up_bias, 2 * b->inner, b->hidden, s->x, b->hidden, s->inner, s->n};
    int64_t size = share_rows(b->hidden), from = index * size, to = least(b->inner, from + size);
    multiply(&p, from, to);
    multiply(&p, b->inner + from, b->inner + to);
    for (int64_t t = 0; t < s->n; t++) {
        float *gate = s->inner + t * 2 * b->inner + from;
        activate(gate, gate + b->inner, to - from, b->activation);
    }
}

static void leave(const void *step, int64_t t, int64_t who) {
    (void)who;
    const Step *s = step;
    add(s->b, s->hidden + t * s->b->hidden, s->delta + t * s->b->hidden, 3);
}

/* Whether none is infinite or no number: both have all bits of the exponent. */
static int64_t all_finite(const float *x, int64_t n) {
    const uint32_t exponent = 0x7f800000;
    uint32_t found = 0, bits;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & exponent) == exponent;
    }
    return !found;
}

/* hidden [tokens, hidden] through the blocks, in place. rotations: of each kind [tokens, rotary_dim / 2, 2], cosine and
 * sine. context: slots of the longest sequence's pages. Returns whether all numbers of the result are finite. */
int64_t step(const Block *blocks, int64_t n_blocks, const Token *tokens, int64_t n, const float *const *rotations,
             int64_t page, int64_t threads, int64_t context, float *hidden, float *memory) {
    threads = gather(threads);
    for (const Block *b = blocks; b < blocks + n_blocks; b++) {
        int64_t size = b->hidden, n_query = query_width(b), n_qkv = qkv_width(b);
        Step s = {.b = b, .tokens = tokens, .turns = rotations[b->rotation], .n = n, .page = page, .context = context};
        s.hidden = hidden, s.x = memory, s.delta = s.x + n * size, s.qkv = s.delta + n * size;
        s.seen = s.qkv + n * n_qkv, s.inner = s.seen + n * n_query, s.scores = s.inner + n * 2 * b->inner;
        each(threads, n, enter_attention, &s);
        multiply_all(threads, (Product){b->qkv, b->qkv_bias, n_qkv, size, s.x, size, s.qkv, n});
        each(threads, n, place_one, &s);
        each(threads, n * b->heads, attend_head, &s);
        multiply_all(threads, (Product){b->o, b->o_bias, size, n_query, s.seen, n_query, s.delta, n});
        each(threads, n, enter_mlp, &s);
        each(threads, shares(b->inner, size), gate_share, &s);
        multiply_all(threads, (Product){b->down, b->down_bias, size, b->inner, s.inner, 2 * b->inner, s.delta, n});
        each(threads, n, leave, &s);
    }
    disband(threads);
    return all_finite(hidden, n * blocks->hidden);
}

/* One matrix: out [tokens, rows] = x [tokens, n] * weight transposed, and bias. */
void product(const num *weight, const float *bias, int64_t rows, int64_t n, const float *x, float *out, int64_t tokens,
             int64_t threads) {
    threads = gather(threads);
    multiply_all(threads, (Product){weight, bias, rows, n, x, n, out, tokens});
    disband(threads);
}

int64_t lanes(void) { return LANES; }

int64_t together(void) { return TOKENS; }
