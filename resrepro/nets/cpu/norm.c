/* Batch normalisation, the addition of a shortcut, and ReLU, in two passes over memory each way.

   PyTorch makes them in five to seven passes; on a CPU these take a quarter of a step, and what bounds them
   is memory. Maps lie channels-last, as rows of C values, one row a pixel. All work is done on rows of W
   values, 64 or a multiple: if C is less, W / C pixels make a row, and the per-channel values are repeated
   along it. Sums are taken for each image by itself and added in the order of the images, in double
   precision, so results do not depend on the number of threads. The second pass goes the other way round
   than the first, so that it begins with what is still in the cache. */

#include <math.h>

#define LANES 16
#include "vectors.h"

enum { VECTORS = 4, LEAST = LANES * VECTORS };

#define EACH for (int k = 0; k < VECTORS; k++)

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
