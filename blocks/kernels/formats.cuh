// What skinny.cu is made of: each format's loads and decoding, products, activations. Knows no tiles and no grid.
//
// Set at compile time: KIND (0 16-bit, 1 four-bit, 2 int8), HALF (fp16, else bf16), NESTED (8-bit scales), PAIRED, Q,
// MT, ABREAST, NT, ACT, ARRANGED, PARTIAL, EARLY, CTAS, EXPERTS, SHARED: see skinny.cu.
//
// Four-bit codes become pairs of 16-bit values by one look-up a byte, in a table that each lane has for itself: copies
// lie side by side, one a bank, so that no two lanes collide, and a byte permutation makes an address.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef long long i64;

#define WARPS 8
#define CHUNK (PAIRED ? 128 : 64)                      // columns
#define CHUNK_BYTES (CHUNK * (KIND == 0 ? 4 : KIND == 2 ? 2 : 1) / 2)
#define LANE_BYTES (KIND == 1 && !PAIRED ? 8 : 16)     // of a row that a lane loads at a time
#define REGS (CHUNK_BYTES / 16)                        // 32-bit registers that hold a lane's part of a row's chunk
#define WORDS (CHUNK / 8)                              // and the same as pairs of 16-bit values
#define BLOCKS (CHUNK / 64)                            // four-bit: scales of a row's chunk
// Shared memory: lines of 32 words, one a lane. For four-bit data 256 entries of two lines come first: the pair of
// weights that a byte stands for, and the scale that it stands for. Then the warps' sums, [2][WARPS][MT * 4] lines.
#define SUMS (KIND == 1 ? 256 * 64 : 0)
#define SCALE_LINE 128  // bytes
#define ROWS (ACT ? 8 : 16)  // rows of the output from 16 of W: gated, 8 of gate and 8 of up
#define TILE_ROWS (ROWS * MT * ABREAST)
#define SHARES (WARPS / ABREAST)  // of K in a block

// Of x: not to be moved ahead of the wait for the kernel that writes it.
__device__ __forceinline__ uint4 load16(const void *p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ uint4 stream16(const void *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ uint2 stream8(const void *p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

__device__ __forceinline__ void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if HALF
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u16 narrow(float v) {
  u16 r;
#if HALF
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
#endif
  return r;
}

__device__ __forceinline__ float widen(u16 v) {
  float r;
#if HALF
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
#else
  r = __uint_as_float((u32)v << 16);
#endif
  return r;
}

__device__ __forceinline__ float activate(float v) {
#if ACT == 1
  return v / (1.0f + __expf(-v));
#elif ACT == 3
  return 0.5f * v * (1.0f + erff(v * 0.7071067811865476f));
#else
  float u = 0.7978845608028654f * (v + 0.044715f * v * v * v);
  return v / (1.0f + __expf(-2.0f * u));  // 0.5 * (1 + tanh(u)) is the logistic function of 2u
#endif
}

__device__ __forceinline__ void fetch(u32 (&r)[REGS], const u8 *p) {
#if LANE_BYTES == 8
  uint2 a = stream8(p);
  r[0] = a.x; r[1] = a.y;
#else
#pragma unroll
  for (int j = 0; j < REGS / 4; j++) {
    uint4 a = stream16(p + 64 * j);
    r[4 * j] = a.x; r[4 * j + 1] = a.y; r[4 * j + 2] = a.z; r[4 * j + 3] = a.w;
  }
#endif
}

// Two int8 in the low bytes of 16-bit lanes, `magic` in the high bytes, to two 16-bit floats, exactly.
__device__ __forceinline__ u32 from_int8(u32 r) {
  u32 d;
#if HALF  // 0x64 makes 1024 + (v + 128), the sign bit flipped before
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(r ^ 0x00800080), "r"(0x64806480));
#else  // 0x43 makes 128 + (v & 127), less 128, or 256 for negative v
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(d) : "r"(r & 0xff7fff7f), "r"(0x3f803f80), "r"((r & 0xff80ff80) ^ 0x80008000));
#endif
  return d;
}

// What byte j of r stands for, in this lane's copy of the table: the address is one byte permutation.
__device__ __forceinline__ u32 look_up(u32 table, u32 r, int j, u32 lane4) {
  u32 v;
  asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(table + __byte_perm(r, lane4, 0x5504 | (j << 4))));
  return v;
}

__device__ __forceinline__ void decode(u32 (&a)[WORDS], const u32 (&r)[REGS], u32 table, u32 lane4) {
#if KIND == 0
#pragma unroll
  for (int j = 0; j < WORDS; j++) a[j] = r[j];
#elif KIND == 1
#pragma unroll
  for (int j = 0; j < WORDS; j++) a[j] = look_up(table, r[j / 4], j % 4, lane4);
#else
  const u32 magic = HALF ? 0x64646464 : 0x43434343;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    a[2 * j] = from_int8(__byte_perm(r[j], magic, 0x4140));
    a[2 * j + 1] = from_int8(__byte_perm(r[j], magic, 0x4342));
  }
#endif
}

#if KIND == 1
struct Scales {  // of one row's Q chunks, as far as they are this lane's
#if NESTED
  u32 codes;
  float outer;
#else
  float plain[Q];
#endif
};

// `block`: which of a chunk's blocks is this lane's.
__device__ __forceinline__ void fetch_scales(Scales &s, const void *scales, const float *outer, int at, int block) {
#if NESTED
#if Q * BLOCKS == 4
  s.codes = *(const u32 *)((const u8 *)scales + at);
#elif Q * BLOCKS == 2
  s.codes = *(const u16 *)((const u8 *)scales + at);
#else
  s.codes = ((const u8 *)scales)[at];
#endif
  if (PAIRED) s.codes >>= 8 * block;
  s.outer = outer[at >> 8];
#else
#pragma unroll
  for (int q = 0; q < Q; q++) s.plain[q] = ((const float *)scales)[at + q * BLOCKS + block];
#endif
}

__device__ __forceinline__ float scale_of(const Scales &s, int q, u32 table, u32 lane4, float offset) {
#if NESTED
  return fmaf(__uint_as_float(look_up(table + SCALE_LINE, s.codes, q * BLOCKS, lane4)), s.outer, offset);
#else
  return s.plain[q];
#endif
}

// The pair of a byte: its high nibble is the earlier column and so the lower half.
__device__ __forceinline__ void build_table(u32 *table, const float *code, const float *inner, int warp, int lane) {
  const u32 mine = narrow(code[lane & 15]);
#pragma unroll
  for (int high = 0; high < 16; high++) {
    u32 first = __shfl_sync(~0u, mine, high);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      u32 second = __shfl_sync(~0u, mine, j * WARPS + warp);
      table[(high * 16 + j * WARPS + warp) * 64 + lane] = first | (second << 16);
    }
  }
#if NESTED
  const u32 scale = __float_as_uint(inner[warp * 32 + lane]);
#pragma unroll
  for (int j = 0; j < 32; j++) table[(warp * 32 + j) * 64 + 32 + lane] = __shfl_sync(~0u, scale, j);
#endif
}
#endif

