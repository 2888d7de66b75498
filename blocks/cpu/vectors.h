/* Vectors of as many floats as this processor adds at once, filled from float or (-DBF16) bfloat16 numbers. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* TOKENS: so many go through a matrix together. */
#if defined(__AVX512F__)
enum { BYTES = 64, TOKENS = 4 };
#elif defined(__AVX__)
enum { BYTES = 32, TOKENS = 2 };
#else
enum { BYTES = 16, TOKENS = 4 };
#endif
enum { LANES = BYTES / 4 };

typedef float vec __attribute__((vector_size(BYTES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
typedef uint32_t uvec __attribute__((vector_size(BYTES)));
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef int32_t four_places __attribute__((vector_size(16)));
typedef uint16_t half_vec __attribute__((vector_size(BYTES / 2), aligned(2)));

/* Four of the eight numbers of two vectors. */
#ifdef __clang__
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (four_places){i, j, k, l})
#endif

#ifdef BF16
typedef uint16_t num;
static inline vec load(const num *at) { return (vec)(__builtin_convertvector(*(const half_vec *)at, uvec) << 16); }
static inline num stored(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : (num)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float num;
static inline vec load(const num *at) { return *(const vec *)at; }
static inline num stored(float x) { return x; }
#endif

static inline vec splat(float x) { return x - (vec){0}; }

static inline four folded(vec v) {
    four parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    return parts[0];
}

/* The sums of four vectors. */
static inline four sums_of(vec a, vec b, vec c, vec d) {
    four w = folded(a), x = folded(b), y = folded(c), z = folded(d);
    four wx = PICK(w, x, 0, 4, 1, 5) + PICK(w, x, 2, 6, 3, 7), yz = PICK(y, z, 0, 4, 1, 5) + PICK(y, z, 2, 6, 3, 7);
    return PICK(wx, yz, 0, 1, 4, 5) + PICK(wx, yz, 2, 3, 6, 7);
}

static inline float sum(vec v) {
    four parts = folded(v);
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

static inline vec either(ivec mask, vec one, vec other) { return (vec)((mask & (ivec)one) | (~mask & (ivec)other)); }

/* e^x to 2 units in the last place (Cephes' polynomial); 0 below -87, and no more than e^88. NaN stays NaN. */
static inline vec vexp(vec x) {
    ivec tiny = x < -87.0f;
    x = either(tiny, splat(-87.0f), either(x > 88.0f, splat(88.0f), x));
    vec n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    vec power = (vec)(((ivec)n << 23) + 0x3f800000);
    n -= 12582912.0f;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = (y * x * x + x + 1.0f) * power;
    return either(tiny, splat(0), y);
}
