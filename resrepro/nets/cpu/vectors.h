/* LANES numbers at a time: loads and stores of float32 and bf16, computed with as float32. Whoever includes this
   says how many. */

#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

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
#if defined __AVX512BF16__ && LANES == 16
    __m256bh raw = _mm512_cvtneps_pbh((__m512)value);
#else
    words bits = (words)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words nan = (words)(value != value);
    halves raw = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), halves);
#endif
    memcpy(to, &raw, sizeof raw);
}
