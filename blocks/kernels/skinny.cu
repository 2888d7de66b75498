// out[T, N] = x[T, K] W[N, K]^T for few rows T: streams W once. Follows formats.cuh in one source.
//
// A block of 8 warps owns TILE_ROWS rows of W and walks over more of them with the grid's stride. Its warps split K in
// steps of Q chunks of columns; their sums meet in shared memory in a fixed order, so results repeat bit by bit.
// Weights go from global memory straight into registers in the layout of mma's left operand (the order of columns
// inside a chunk is free as long as x is read in the same order), and each register is refilled for the next step, or
// the next tile, as soon as it is used: nearly all of a thread's weights are in flight at any time.
//
// MT: 16-row tiles of W a warp. ABREAST: warps beside each other along W's rows; the others share K. NT: 8-row tiles of
// x. Q: chunks a step. ACT: 0 none, else act(gate) * up with 1 silu, 2 gelu_tanh, 3 gelu. ARRANGED: x went through
// `arrange`. PARTIAL: the output is fp32 sums [gridDim.y, T, N]. EARLY: the kernel may start before the one ahead of it
// has ended. ORDERED: the output of ACT lies as `arrange` makes it for weights of 16 bits (1) or of fewer (2). CTAS:
// blocks a multiprocessor. PAIRED: for four-bit data and at most 4 rows, chunks of 128 columns. There
// two neighbouring lanes' weights share a scale, instead of all four, and a load takes 16 bytes of a row instead of 8;
// since mma adds up over four lanes, x stands twice in its operand, each time half of it zero.
// EXPERTS: W is many matrices [n, K] one below the other, and gridDim.y blocks share them: rows of x meet the matrix of
// the expert that they were sent to. `owners[i]` is the expert of pair `order[i]`, and those of expert e begin at
// `starts[e]`; x has a row for every `per_token` pairs, or (SHARED) for every pair: then the results are fp32 times the
// pair's share, [per_token, T, N]. As many pairs as x has tiles for are taken at a time.
// K must be a multiple of the columns of a step, the output as wide as a tile, x and W aligned to 16 bytes.

#define X_PART (KIND == 0 ? 32 : 8)  // columns from one 16 bytes of x that a lane takes of a chunk to the next
#define X_CHUNK (ARRANGED ? NT * 8 * CHUNK : CHUNK)
#if EXPERTS
#define FIRST_PART 0  // of K, for a block
#define PARTS 1
#else
#define FIRST_PART blockIdx.y
#define PARTS gridDim.y
#endif

// Where this lane finds what it takes of tile j of x. Past the last row, the last: those results are not stored.
__device__ __forceinline__ const u16 *x_of(const u16 *x, int x_stride, int j, int g, int t, int rows,
                                           const int *pair_of, int per_token) {
#if EXPERTS
  const int pair = pair_of[min(j * 8 + g, rows - 1)];
  return x + (i64)(SHARED ? pair : pair / per_token) * x_stride + t * (KIND == 0 ? 8 : CHUNK / 4);
#elif ARRANGED
  return x + j * (8 * CHUNK) + (g * 4 + t) * 8;
#else
  return x + (i64)min(j * 8 + g, rows - 1) * x_stride + t * (KIND == 0 ? 8 : CHUNK / 4);
#endif
}

// x in the order in which lanes take it: [K / 64][NT][2] lines of 32 times 16 bytes, which is worth it for many rows.
extern "C" __global__ void arrange(const u16 *x, int x_stride, uint4 *out, int rows, int k) {
#if EARLY
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  const int at = blockIdx.x * blockDim.x + threadIdx.x, lane = at % 32, part = at / 32 % 2, j = at / 64 % NT;
  if (at >= k / 64 * NT * 64) return;
  const int row = min(j * 8 + lane / 4, rows - 1), column = at / 64 / NT * 64 + lane % 4 * (KIND == 0 ? 8 : 16);
  out[at] = load16(x + (i64)row * x_stride + column + part * X_PART);
}

// Where `arrange` puts a row's column, for as many rows as here.
__device__ __forceinline__ i64 ordered(int row, int column) {
  const int inside = column % 64, part = ORDERED == 1 ? inside / 32 : inside % 16 / 8;
  const int t = ORDERED == 1 ? inside % 32 / 8 : inside / 16;
  return ((((i64)(column / 64) * NT + row / 8) * 2 + part) * 32 + row % 8 * 4 + t) * 8 + column % 8;
}

// The columns of one of x's rows that match this lane's weights of a chunk.
__device__ __forceinline__ void load_rows(u32 (&b)[WORDS], const u16 *p, bool mine) {
#pragma unroll
  for (int j = 0; j < WORDS / 4; j++) {
    uint4 v = {};
    if (mine) v = load16(p + j * (ARRANGED ? 256 : X_PART));
    b[4 * j] = v.x; b[4 * j + 1] = v.y; b[4 * j + 2] = v.z; b[4 * j + 3] = v.w;
  }
}

// acc += scales * (a b), for 16 rows of W, 8 of x and a chunk.
__device__ __forceinline__ void add_product(float (&acc)[4], const u32 (&a)[2][WORDS], const u32 (&b)[WORDS],
                                            float upper, float lower) {
#if KIND == 1
  float part[4] = {};
#else
  float(&part)[4] = acc;
#endif
#pragma unroll
  for (int j = 0; j < WORDS; j += 2) multiply(part, a[0][j], a[1][j], a[0][j + 1], a[1][j + 1], b[j], b[j + 1]);
#if KIND == 1
  acc[0] = fmaf(part[0], upper, acc[0]);
  acc[1] = fmaf(part[1], upper, acc[1]);
  acc[2] = fmaf(part[2], lower, acc[2]);
  acc[3] = fmaf(part[3], lower, acc[3]);
#endif
}

#if KIND == 1
#define SCALES(i) \
  scale_of(scale[i][0], q, table, lane4, offset), scale_of(scale[i][1], q, table, lane4, offset)
#else
#define SCALES(i) 0.0f, 0.0f  // not used
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, CTAS)
skinny(const u16 *x, int x_stride, const u8 *w, const void *scales, const float *code, const float *inner_scales,
       const float *outer_scales, const float *scales_offset, const u16 *bias, void *out, int rows, int n, int k
#if EXPERTS
       , const int *order, const int *starts, const int *owners, const float *shares, int per_token, int by_pair
#endif
       ) {
#if EXPERTS
  const int pairs = rows, expert = by_pair ? owners[blockIdx.y] : blockIdx.y, begin = starts[expert];
  const int end = by_pair && begin != blockIdx.y ? begin : starts[expert + 1];  // the first of its pairs does them all
  if (begin == end) return;
  const int above = expert * n;
#else
  const int above = 0, per_token = 0;
  const int *pair_of = nullptr;
#endif
#if EARLY
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  extern __shared__ u32 shared[];
  float *sums = (float *)(shared + SUMS);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int n_out = ACT ? n / 2 : n, tiles = (n_out + TILE_ROWS - 1) / TILE_ROWS;
  const int abreast = warp % ABREAST, share = warp / ABREAST;
  const int chunks = k / CHUNK, steps = chunks / Q, first = FIRST_PART * SHARES + share, stride = PARTS * SHARES;
  const i64 row_bytes = (i64)chunks * CHUNK_BYTES;
  const int half = ACT ? n / 2 : 8;  // rows from the first to the second half of 16
  // Paired: results 0 to 3 of 8 are the sums over the first blocks of chunks, 4 to 7 those over the second.
  const int block = PAIRED ? t / 2 : 0;
  const bool mine = !PAIRED || block == g / 4;
  int flip = 0;
#if EXPERTS
  for (int done = begin; done < end; done += PAIRED ? 4 : 8 * NT) {
  const int rows = min(end - done, PAIRED ? 4 : 8 * NT), *pair_of = order + done;
#endif
  const u16 *x_part[NT];
#pragma unroll
  for (int j = 0; j < NT; j++) x_part[j] = x_of(x, x_stride, j, PAIRED ? g % 4 : g, t, rows, pair_of, per_token);

  // What is fetched next: this thread's part of the first row of the tile. The last tile overlaps the one before.
  const int own = abreast * MT * ROWS + g;
  int tile = blockIdx.x, row = min(tile * TILE_ROWS, n_out - TILE_ROWS) + own;
  const u8 *source = w + (above + row) * row_bytes + (i64)first * Q * CHUNK_BYTES + t * LANE_BYTES;
  u32 held[Q][MT][2][REGS];
  if (first < steps)
#pragma unroll
    for (int q = 0; q < Q; q++)
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          fetch(held[q][i][h], source + (i * ROWS + h * half) * row_bytes + q * CHUNK_BYTES);

  const u32 table = (u32)__cvta_generic_to_shared(shared), lane4 = lane * 4;
#if KIND == 1
  const float offset = NESTED ? *scales_offset : 0.0f;
  Scales scale[MT][2], next_scale[MT][2];
  int scale_at = ((above + row) * chunks + first * Q) * BLOCKS;
  if (first < steps)
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        fetch_scales(next_scale[i][h], scales, outer_scales, scale_at + (i * ROWS + h * half) * chunks * BLOCKS, block);
#if EXPERTS
  if (done == begin)
#endif
  {
    build_table(shared, code, inner_scales, warp, lane);
    __syncthreads();
  }
#endif

  // Up to here nothing depended on the kernel before this one: weights do not change. From here on everything does.
#if EARLY
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif

  for (; tile < tiles; tile += gridDim.x) {
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) acc[i][j][c] = 0.0f;

    for (int step = first; step < steps; step += stride) {
      bool more = true;
      if (step + stride < steps) {
        source += stride * (Q * CHUNK_BYTES);
#if KIND == 1
        scale_at += stride * Q * BLOCKS;
#endif
      } else {
        const int next_tile = tile + gridDim.x;
        more = next_tile < tiles;
        row = min(next_tile * TILE_ROWS, n_out - TILE_ROWS) + own;
        source = w + (above + row) * row_bytes + (i64)first * Q * CHUNK_BYTES + t * LANE_BYTES;
#if KIND == 1
        scale_at = ((above + row) * chunks + first * Q) * BLOCKS;
#endif
      }
#if KIND == 1
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          scale[i][h] = next_scale[i][h];
          const int at = scale_at + (i * ROWS + h * half) * chunks * BLOCKS;
          if (more) fetch_scales(next_scale[i][h], scales, outer_scales, at, block);
        }
#endif
#pragma unroll
      for (int q = 0; q < Q; q++) {
        u32 a[MT][2][WORDS], b[NT][WORDS];
        if (NT <= 2)  // few rows: x is loaded first and waits in registers; many rows: the weights do
#pragma unroll
          for (int j = 0; j < NT; j++) load_rows(b[j], x_part[j] + (step * Q + q) * X_CHUNK, mine);
#pragma unroll
        for (int i = 0; i < MT; i++) {
#pragma unroll
          for (int h = 0; h < 2; h++) {
            decode(a[i][h], held[q][i][h], table, lane4);
            if (more) fetch(held[q][i][h], source + (i * ROWS + h * half) * row_bytes + q * CHUNK_BYTES);
          }
          if (NT <= 2)
#pragma unroll
            for (int j = 0; j < NT; j++) add_product(acc[i][j], a[i], b[j], SCALES(i));
        }
        if (NT > 2)
#pragma unroll
          for (int j = 0; j < NT; j++) {
            load_rows(b[j], x_part[j] + (step * Q + q) * X_CHUNK, mine);
#pragma unroll
            for (int i = 0; i < MT; i++) add_product(acc[i][j], a[i], b[j], SCALES(i));
          }
      }
    }

    // The warps' sums, one tile of 8 rows of x at a time; two buffers, so that one barrier each is enough.
#pragma unroll
    for (int j = 0; j < NT; j++) {
      if (j * 8 < rows) {
        float *buffer = sums + flip * (WARPS * MT * 4 * 32);
        flip ^= 1;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int c = 0; c < 4; c++) buffer[((warp * MT + i) * 4 + c) * 32 + lane] = acc[i][j][c];
        __syncthreads();
        const int each = ACT ? 2 : 4;
        for (int v = threadIdx.x; v < ABREAST * MT * each * 32; v += 32 * WARPS) {
          const int l = v % 32, c = v / 32 % each, i = v / 32 / each;
          const int column = min(tile * TILE_ROWS, n_out - TILE_ROWS) + i * ROWS + (ACT ? 0 : c / 2 * 8) + l / 4;
          const int m = j * 8 + l % 4 * 2 + c % 2;
          if (m >= (PAIRED ? min(rows, 4) : rows)) continue;
          float total[ACT ? 2 : 1];
#pragma unroll
          for (int part = 0; part < (ACT ? 2 : 1); part++) {
            float sum = 0.0f;
#pragma unroll
            for (int other = 0; other < SHARES; other++) {
              const float *from = buffer + ((other * ABREAST * MT + i) * 4 + c + part * 2) * 32 + l;
              sum += PAIRED ? from[0] + from[2] : from[0];  // two lanes on are the results four on
            }
            const int source = column + part * (n / 2);
#if KIND == 2
            sum *= ((const float *)scales)[above + source] * (1.0f / 127.0f);
#endif
            if (bias != nullptr && FIRST_PART == 0) sum += widen(bias[above + source]);
            total[part] = sum;
          }
#if EXPERTS && SHARED
          const int pair = pair_of[m], token = pair / per_token, place = pair % per_token * (pairs / per_token) + token;
          ((float *)out)[(i64)place * n_out + column] = total[0] * shares[pair];
#elif EXPERTS
          const float result = ACT ? activate(total[0]) * total[ACT ? 1 : 0] : total[0];
          ((u16 *)out)[(i64)pair_of[m] * n_out + column] = narrow(result);
#elif ACT
          const i64 place = ORDERED ? ordered(m, column) : (i64)m * n_out + column;
          ((u16 *)out)[place] = narrow(activate(total[0]) * total[1]);
#elif PARTIAL
          ((float *)out)[((i64)blockIdx.y * rows + m) * n_out + column] = total[0];
#else
          ((u16 *)out)[(i64)m * n_out + column] = narrow(total[0]);
#endif
        }
      }
    }
  }
#if EXPERTS
  }
#endif
}
