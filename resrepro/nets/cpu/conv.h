/* Maps of type T: what reads and writes them; conv.c includes this once for each type. */

/* Fetch what a thread needs soon, a 36th at each place. */
#define FETCH(from, count, writes)                                                              \
    for (long line = (count) * place / PLACES * (long)sizeof(T) / 64,                           \
              end = (count) * (place + 1) / PLACES * (long)sizeof(T) / 64; line < end; line++)  \
        __builtin_prefetch((const char *)(from) + line * 64, writes, 2);

/* columns[i][1 + x] = B^T d down each column x of a band; column 0 and the last one are left alone. */
INLINE void NAME(data_down)(const T *x, long height, long width, long channels, long top, float *columns)
{
    long line = (width + 2) * channels, row = width * channels;
    int inner = top > 0 && top + SIDE - 1 <= height;
    for (long at = 0; at < row; at += LANES) {
        floats d[SIDE], out[SIDE];
        for (int i = 0; i < SIDE; i++) {
            long y = top + i - 1;
            d[i] = inner || (y >= 0 && y < height) ? LOAD(x + y * row + at) : (floats){0};
        }
        transform_data(d, out);
        for (int i = 0; i < SIDE; i++) store_f32(columns + i * line + channels + at, out[i]);
    }
}

/* columns[i][x] = A z down each column x of a band. */
INLINE void NAME(gradients_down)(const T *z, long width, long channels, long top, float *columns)
{
    long row = width * channels;
    for (long at = 0; at < row; at += LANES) {
        floats d[STRIDE], out[SIDE];
        for (int i = 0; i < STRIDE; i++) d[i] = LOAD(z + (top + i) * row + at);
        transform_gradients(d, out);
        for (int i = 0; i < SIDE; i++) store_f32(columns + i * row + at, out[i]);
    }
}

/* y = A^T m A for one tile. */
INLINE void NAME(give_tile)(const float *m, long step, T *y, long row, long channels)
{
    for (long c = 0; c < channels; c += LANES) {
        floats columns[SIDE][STRIDE];
        UNROLL (int j = 0; j < SIDE; j++) {
            floats d[SIDE];
            for (int i = 0; i < SIDE; i++) d[i] = load_f32(m + (i * SIDE + j) * step + c);
            transform_products(d, columns[j]);
        }
        UNROLL (int i = 0; i < STRIDE; i++) {
            floats d[SIDE], out[STRIDE];
            for (int j = 0; j < SIDE; j++) d[j] = columns[j][i];
            transform_products(d, out);
            for (int j = 0; j < STRIDE; j++) STORE(y + i * row + j * channels + c, out[j]);
        }
    }
}

/* A few bands of images (height, width, channels), and the buffers for their transforms. */
INLINE void NAME(take_bands)(
    const T *x, long height, long width, long channels, long first, long count, float *columns, float *v,
    long room)
{
    long across = width / STRIDE, down = height / STRIDE, line = (width + 2) * channels;
    for (long band = first; band < first + count; band++) {
        const T *image = x + band / down * height * width * channels;
        NAME(data_down)(image, height, width, channels, band % down * STRIDE, columns);
        for (long tile = 0; tile < across; tile++, v += channels)
            take_data(columns + tile * STRIDE * channels, line, channels, v, room * channels);
    }
}

INLINE void NAME(take_gradient_bands)(
    const T *z, long height, long width, long channels, long first, long count, float *columns, float *v,
    long room)
{
    long across = width / STRIDE, down = height / STRIDE;
    for (long band = first; band < first + count; band++) {
        const T *image = z + band / down * height * width * channels;
        NAME(gradients_down)(image, width, channels, band % down * STRIDE, columns);
        for (long tile = 0; tile < across; tile++, v += channels)
            take_gradients(columns + tile * STRIDE * channels, width * channels, channels, v, room * channels);
    }
}

/* y (images, height, width, out) from x (images, height, width, in) and the prepared filters u. */
void NAME(convolve)(
    const T *x, const float *u, T *y, float *buffers, long images, long height, long width, long in, long out,
    int threads)
{
    long across = width / STRIDE, down = height / STRIDE, bands = images * down;
    long group = bands_at_once(across, TILES), room = rounded_up(group * across);
    long blocks = (bands + group - 1) / group, pixels = group * STRIDE * width;
    long size = scratch(width, in, out, 1);
#pragma omp parallel num_threads(threads)
    {
        float *v = buffers + THREAD * size, *m = v + PLACES * room * in, *columns = m + PLACES * room * out;
        memset(columns, 0, sizeof(float) * SIDE * (width + 2) * in);
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            long first = block * group, count = bands - first < group ? bands - first : group;
            NAME(take_bands)(x, height, width, in, first, count, columns, v, room);
            for (int place = 0; place < PLACES; place++) {
                FETCH(x + ((block + 1) * pixels + width) * in, pixels * in, 0)
                FETCH(y + block * pixels * out, pixels * out, 1)
                for (long tile = place * room; tile < (place + 1) * room; tile += TILES)
                    multiply(v + tile * in, u + place * in * out, m + tile * out, in, out);
            }
            T *to = y + first * STRIDE * width * out;
            for (long tile = 0; tile < count * across; tile++) {
                long at = tile / across * STRIDE * width + tile % across * STRIDE;
                NAME(give_tile)(m + tile * out, room * out, to + at * out, width * out, out);
            }
        }
    }
}

/* dw (out, 3, 3, in), the gradient of the filters, from x (images, height, width, in) and z (images, height, width,
   out), that of the outputs. */
void NAME(correlate)(
    const T *x, const T *z, float *dw, float *buffers, float *partial, long images, long height, long width, long in,
    long out, int threads)
{
    long across = width / STRIDE, down = height / STRIDE, bands = images * down;
    long group = bands_at_once(across, BATCH), room = rounded_up(group * across);
    long blocks = (bands + group - 1) / group, pixels = group * STRIDE * width;
    long size = scratch(width, in, out, 0), filters = FILTER * in * out;
#pragma omp parallel num_threads(threads)
    {
        float *v = buffers + THREAD * size, *gradients = v + PLACES * room * in, *s = gradients + PLACES * room * out;
        float *columns = s + PLACES * in * out, *others = columns + SIDE * (width + 2) * in;
        memset(columns, 0, sizeof(float) * SIDE * (width + 2) * in);
#pragma omp for schedule(static)
        for (long part = 0; part < PARTS; part++) {
            memset(s, 0, sizeof(float) * PLACES * in * out);
            for (long block = blocks * part / PARTS; block < blocks * (part + 1) / PARTS; block++) {
                long first = block * group, count = bands - first < group ? bands - first : group;
                NAME(take_bands)(x, height, width, in, first, count, columns, v, room);
                NAME(take_gradient_bands)(z, height, width, out, first, count, others, gradients, room);
                for (int place = 0; place < PLACES; place++) {
                    FETCH(x + ((block + 1) * pixels + width) * in, pixels * in, 0)
                    FETCH(z + (block + 1) * pixels * out, pixels * out, 0)
                    add_products(gradients + place * room * out, v + place * room * in, s + place * in * out,
                                 count * across, in, out);
                }
            }
            give_part(s, partial + part * filters, in, out);
        }
#pragma omp for schedule(static)
        for (long at = 0; at < filters; at += LANES) {
            floats sum = load_f32(partial + at);
            for (long part = 1; part < PARTS; part++) sum += load_f32(partial + part * filters + at);
            store_f32(dw + at, sum);
        }
    }
}
