/* Batch normalisation, the addition of a shortcut, and ReLU, in two passes over memory each way.

   PyTorch makes them in five to seven passes; on a CPU these take a quarter of a step, and what bounds them
   is memory. Maps lie channels-last, as rows of C values, one row a pixel. All work is done on rows of W
   values, 64 or a multiple: if C is less, W / C pixels make a row, and the per-channel values are repeated
   along it. Sums are taken for each image by itself and added in the order of the images, in double
   precision, so results do not depend on the number of threads. The second pass goes the other way round
   than the first, so that it begins with what is still in the cache. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { LANES = 16, VECTORS = 4, LEAST = LANES * VECTORS };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define EACH for (int k = 0; k < VECTORS; k++)

INLINE floats load_f32(const float *from) { floats value; memcpy(&value, from, sizeof value); return value; }
INLINE void store_f32(float *to, floats value) { memcpy(to, &value, sizeof value); }

INLINE floats load_bf16(const uint16_t *from)
{
    halves raw;
    memcpy(&raw, from, sizeof raw);
    return (floats)(__builtin_convertvector(raw, words) << 16);
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE void store_bf16(uint16_t *to, floats value)
{
#ifdef __AVX512BF16__
    __m256bh raw = _mm512_cvtneps_pbh((__m512)value);
#else
    words bits = (words)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words nan = (words)(value != value);
    halves raw = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), halves);
#endif
    memcpy(to, &raw, sizeof raw);
}

/* value where gate is above zero, else zero (ReLU and its gradient); a NaN gate lets the value through. */
INLINE floats where_open(floats value, floats gate) { return (floats)((ints)value & ~(ints)(gate <= 0)); }

/* What the forward pass leaves for the backward one: four rows of W. */
enum { MEAN, INVERSE, SCALE, SHIFT, SAVED };

static long width_of(long channels) { return channels < LEAST ? LEAST : channels; }

/* The sum of one of two quantities over all images and, where a row holds several pixels, over these. */
static double total(const float *partial, long images, long width, long channels, int which, long channel)
{
    double sum = 0;
    for (long n = 0; n < images; n++)
        for (long i = channel; i < width; i += channels) sum += partial[(2 * n + which) * width + i];
    return sum;
}

#define T float
#define NAME(part) part##_f32
#define LOAD load_f32
#define STORE store_f32
#include "norm.h"
#undef T
#undef NAME
#undef LOAD
#undef STORE

#define T uint16_t
#define NAME(part) part##_bf16
#define LOAD load_bf16
#define STORE store_bf16
#include "norm.h"
