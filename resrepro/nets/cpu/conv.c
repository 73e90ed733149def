/* 3x3 convolutions of stride 1 with a quarter of the multiplications: Winograd's minimal filtering.

   A tile of 4x4 outputs depends on 6x6 inputs d; with the filter g (3x3) it is A^T [(G g G^T) . (B^T d B)] A,
   36 products instead of 144 (Lavin and Gray, arXiv 1509.09308, F(4x4, 3x3)). Given gradients z of the outputs, that
   of the filter is the sum over all tiles of G^T [(B^T d B) . (A z A^T)] G, and that of the inputs a convolution of
   z with the filter turned round. All is computed in float32, whatever the maps are stored in; the rounding is
   about ten times that of the direct sum in float32 (1e-5 of an output's deviation), far below that of bf16.

   Maps lie channels-last. A band is a row of tiles, four lines of a map. The tiles of a few bands are taken at
   once, such that their transforms stay in the cache, and while these are multiplied the memory for the next
   ones is fetched. Outputs are computed tile by tile, and the sums over tiles in PARTS, each in order and
   added in order, so results do not depend on the number of threads. */

#include <omp.h>

/* As many as a register holds: the sums below stay in registers. */
#if defined __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
#include "vectors.h"

enum {
    SIDE = 6, PLACES = SIDE * SIDE, STRIDE = 4,  /* of a tile */
    TILES = 8,     /* multiplied at once */
    BATCH = 16,    /* summed over at once */
    PARTS = 16,
    FILTER = 9
};

#define THREAD omp_get_thread_num()
#define UNROLL _Pragma("GCC unroll 16") for

/* B^T d */
INLINE void transform_data(const floats d[SIDE], floats out[SIDE])
{
    floats a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], e = d[4] - d[2], f = 2 * (d[3] - d[1]);
    out[0] = 4 * d[0] - 5 * d[2] + d[4];
    out[1] = a + b;
    out[2] = a - b;
    out[3] = e + f;
    out[4] = e - f;
    out[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* A^T m */
INLINE void transform_products(const floats m[SIDE], floats out[STRIDE])
{
    floats a = m[1] + m[2], b = m[1] - m[2], e = m[3] + m[4], f = m[3] - m[4];
    out[0] = m[0] + a + e;
    out[1] = b + 2 * f;
    out[2] = a + 4 * e;
    out[3] = b + 8 * f + m[5];
}

/* A z */
INLINE void transform_gradients(const floats z[STRIDE], floats out[SIDE])
{
    floats a = z[0] + z[2], b = z[1] + z[3], e = z[0] + 4 * z[2], f = 2 * z[1] + 8 * z[3];
    out[0] = z[0];
    out[1] = a + b;
    out[2] = a - b;
    out[3] = e + f;
    out[4] = e - f;
    out[5] = z[3];
}

/* G g */
INLINE void transform_filter(const floats g[3], floats out[SIDE])
{
    const float sixth = 1.0f / 6, part = 1.0f / 24;
    floats a = (g[0] + g[2]) * -sixth, b = g[1] * sixth, e = g[0] * part + g[2] * sixth, f = g[1] * (2 * part);
    out[0] = 0.25f * g[0];
    out[1] = a - b;
    out[2] = a + b;
    out[3] = e + f;
    out[4] = e - f;
    out[5] = g[2];
}

/* G^T s */
INLINE void transform_sums(const floats s[SIDE], floats out[3])
{
    const float sixth = 1.0f / 6, part = 1.0f / 24;
    floats a = (s[1] + s[2]) * -sixth, e = s[3] + s[4];
    out[0] = 0.25f * s[0] + a + e * part;
    out[1] = (s[2] - s[1]) * sixth + (s[3] - s[4]) * (2 * part);
    out[2] = a + e * sixth + s[5];
}

/* u[place][c][k] = G g G^T for filters w[k][3][3][c]; turned round, u[place][k][c] for the gradient of the inputs. */
void prepare(const float *w, float *u, long in, long out, int turned)
{
    long rows = turned ? out : in, columns = turned ? in : out;
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < columns; column += LANES) {
            floats g[3][3], half[3][SIDE], line[3], whole[SIDE];
            for (int i = 0; i < FILTER; i++)
                for (int l = 0; l < LANES; l++) {
                    long k = turned ? row : column + l, c = turned ? column + l : row;
                    g[i % 3][i / 3][l] = w[(k * FILTER + (turned ? FILTER - 1 - i : i)) * in + c];
                }
            for (int j = 0; j < 3; j++) transform_filter(g[j], half[j]);
            for (int i = 0; i < SIDE; i++) {
                for (int j = 0; j < 3; j++) line[j] = half[j][i];
                transform_filter(line, whole);
                for (int j = 0; j < SIDE; j++)
                    store_f32(u + ((i * SIDE + j) * rows + row) * columns + column, whole[j]);
            }
        }
}

/* v[place] of a tile from columns that are transformed already: B^T down them, now B along the lines. */
INLINE void take_data(const float *columns, long line, long channels, float *v, long step)
{
    for (int i = 0; i < SIDE; i++)
        for (long c = 0; c < channels; c += LANES) {
            floats d[SIDE], out[SIDE];
            for (int j = 0; j < SIDE; j++) d[j] = load_f32(columns + i * line + j * channels + c);
            transform_data(d, out);
            for (int j = 0; j < SIDE; j++) store_f32(v + (i * SIDE + j) * step + c, out[j]);
        }
}

INLINE void take_gradients(const float *columns, long line, long channels, float *z, long step)
{
    for (int i = 0; i < SIDE; i++)
        for (long c = 0; c < channels; c += LANES) {
            floats d[STRIDE], out[SIDE];
            for (int j = 0; j < STRIDE; j++) d[j] = load_f32(columns + i * line + j * channels + c);
            transform_gradients(d, out);
            for (int j = 0; j < SIDE; j++) store_f32(z + (i * SIDE + j) * step + c, out[j]);
        }
}

/* VECTORS vectors of m[t][k] = sum over c of v[t][c] u[c][k], for TILES tiles. */
#define MULTIPLY(VECTORS)                                                                           \
    for (; k + VECTORS * LANES <= out; k += VECTORS * LANES) {                                      \
        floats sum[TILES][VECTORS], w[VECTORS];                                                     \
        UNROLL (int t = 0; t < TILES; t++) UNROLL (int i = 0; i < VECTORS; i++) sum[t][i] = (floats){0}; \
        for (long c = 0; c < in; c++) {                                                             \
            UNROLL (int i = 0; i < VECTORS; i++) w[i] = load_f32(u + c * out + k + i * LANES);      \
            UNROLL (int t = 0; t < TILES; t++)                                                      \
                UNROLL (int i = 0; i < VECTORS; i++) sum[t][i] += v[t * in + c] * w[i];             \
        }                                                                                           \
        UNROLL (int t = 0; t < TILES; t++)                                                          \
            UNROLL (int i = 0; i < VECTORS; i++) store_f32(m + t * out + k + i * LANES, sum[t][i]); \
    }

static void multiply(const float *v, const float *u, float *m, long in, long out)
{
    long k = 0;
    if (LANES == 16) MULTIPLY(2)  /* of 32 registers; others have half */
    MULTIPLY(1)
}

/* s[k][c] += sum over t of z[t][k] v[t][c] */
static void add_products(const float *z, const float *v, float *s, long tiles, long in, long out)
{
    for (long k = 0; k < out; k += LANES)
        for (long c = 0; c < in; c += LANES) {
            floats sum[LANES];
            UNROLL (int i = 0; i < LANES; i++) sum[i] = load_f32(s + (k + i) * in + c);
            for (long t = 0; t < tiles; t++) {
                floats data = load_f32(v + t * in + c);
                UNROLL (int i = 0; i < LANES; i++) sum[i] += z[t * out + k + i] * data;
            }
            UNROLL (int i = 0; i < LANES; i++) store_f32(s + (k + i) * in + c, sum[i]);
        }
}

/* part[k][3][3][c] = G^T s G */
static void give_part(const float *s, float *part, long in, long out)
{
    long filters = in * out;
    for (long at = 0; at < filters; at += LANES) {
        floats line[SIDE], half[SIDE][3], whole[3];
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < SIDE; j++) line[j] = load_f32(s + (i * SIDE + j) * filters + at);
            transform_sums(line, half[i]);
        }
        for (int j = 0; j < 3; j++) {
            for (int i = 0; i < SIDE; i++) line[i] = half[i][j];
            transform_sums(line, whole);
            for (int i = 0; i < 3; i++) store_f32(part + (at / in * FILTER + i * 3 + j) * in + at % in, whole[i]);
        }
    }
}

/* Bands of tiles that are taken at once, so that they have about `tiles`. */
static long bands_at_once(long across, long tiles) { return across < tiles ? tiles / across : 1; }

static long rounded_up(long tiles) { return (tiles + TILES - 1) / TILES * TILES; }

/* Numbers that one thread needs beside the maps, for `convolve` or else `correlate`. */
long scratch(long width, long in, long out, int convolves)
{
    long across = width / STRIDE, least = convolves ? TILES : BATCH;
    long tiles = rounded_up(bands_at_once(across, least) * across);
    long sums = convolves ? 0 : PLACES * in * out;
    return PLACES * tiles * (in + out) + SIDE * (width + 2) * (in + out) + sums;
}

long parts(void) { return PARTS; }

#define T float
#define NAME(part) part##_f32
#define LOAD load_f32
#define STORE store_f32
#include "conv.h"
#undef T
#undef NAME
#undef LOAD
#undef STORE

#define T uint16_t
#define NAME(part) part##_bf16
#define LOAD load_bf16
#define STORE store_bf16
#include "conv.h"
