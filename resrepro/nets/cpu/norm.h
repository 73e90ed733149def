/* The two passes of each direction for numbers of type T; norm.c includes this once for each type. */

/* Sums over one image of x - origin and of its square: `origin` keeps large means from cancelling. */
INLINE void NAME(sum_image)(const T *x, const float *origin, float *sums, long rows, long width)
{
    floats first[VECTORS], sum[VECTORS], square[VECTORS];
    EACH { first[k] = load_f32(origin + k * LANES); sum[k] = square[k] = (floats){0}; }
    for (long r = 0; r < rows; r++) EACH {
        floats d = LOAD(x + r * width + k * LANES) - first[k];
        sum[k] += d;
        square[k] += d * d;
    }
    EACH { store_f32(sums + k * LANES, sum[k]); store_f32(sums + width + k * LANES, square[k]); }
}

/* y = relu(scale x + shift + shortcut) for one image. */
INLINE void NAME(apply_image)(
    const T *x, const T *shortcut, T *y, const float *saved, long rows, long width)
{
    floats scale[VECTORS], shift[VECTORS];
    EACH {
        scale[k] = load_f32(saved + SCALE * width + k * LANES);
        shift[k] = load_f32(saved + SHIFT * width + k * LANES);
    }
    for (long r = 0; r < rows; r++) EACH {
        long i = r * width + k * LANES;
        floats value = LOAD(x + i) * scale[k] + shift[k];
        if (shortcut) value += LOAD(shortcut + i);
        STORE(y + i, where_open(value, value));
    }
}

/* Mean and variance of each channel into the running averages and into `saved`. */
static void NAME(settle)(
    const float *origin, const float *partial, const float *weight, const float *bias, float *running_mean,
    float *running_var, float *saved, double momentum, double eps, long images, long pixels, long channels)
{
    long width = width_of(channels);
    double count = (double)images * pixels;
    for (long c = 0; c < channels; c++) {
        double d = total(partial, images, width, channels, 0, c) / count;
        double square = total(partial, images, width, channels, 1, c) / count;
        double mean = origin[c] + d, var = fmax(square - d * d, 0), inverse = 1 / sqrt(var + eps);
        if (isnan(square)) var = inverse = square;
        running_mean[c] += momentum * (mean - running_mean[c]);
        running_var[c] += momentum * (var * count / (count - 1) - running_var[c]);
        for (long i = c; i < width; i += channels) {
            saved[MEAN * width + i] = mean;
            saved[INVERSE * width + i] = inverse;
            saved[SCALE * width + i] = weight[c] * inverse;
            saved[SHIFT * width + i] = bias[c] - mean * weight[c] * inverse;
        }
    }
}

void NAME(forward)(
    const T *x, const T *shortcut, T *y, const float *weight, const float *bias, float *running_mean,
    float *running_var, float *saved, float *partial, double momentum, double eps, long images, long pixels,
    long channels, int threads)
{
    long width = width_of(channels), rows = pixels * channels / width, image = rows * width;
    float *origin = saved;  /* until the mean takes its place */
    for (long i = 0; i < width; i += LANES) store_f32(origin + i, LOAD(x + i));
    for (long i = channels; i < width; i++) origin[i] = origin[i - channels];
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long m = 0; m < images; m++)
            for (long c = 0, n = images - 1 - m; c < width; c += LEAST)
                NAME(sum_image)(x + n * image + c, origin + c, partial + 2 * n * width + c, rows, width);
#pragma omp single
        NAME(settle)(origin, partial, weight, bias, running_mean, running_var, saved, momentum, eps, images,
                     pixels, channels);
#pragma omp for schedule(static)
        for (long n = 0; n < images; n++)
            for (long c = 0; c < width; c += LEAST) {
                long at = n * image + c;
                if (shortcut)
                    NAME(apply_image)(x + at, shortcut + at, y + at, saved + c, rows, width);
                else
                    NAME(apply_image)(x + at, 0, y + at, saved + c, rows, width);
            }
    }
}

/* Sums over one image of the gradient g before the ReLU and of g (x - mean).

   With a shortcut g is also the shortcut's gradient and is written down; `dy` and `side` are the gradients
   of the output's two uses. Without one, whether the ReLU was open follows from x. */
INLINE void NAME(sum_gradients)(
    const T *dy, const T *side, const T *y, const T *x, T *g, const float *saved, float *sums, long rows,
    long width)
{
    floats mean[VECTORS], scale[VECTORS], shift[VECTORS], sum[VECTORS], product[VECTORS];
    EACH {
        mean[k] = load_f32(saved + MEAN * width + k * LANES);
        scale[k] = load_f32(saved + SCALE * width + k * LANES);
        shift[k] = load_f32(saved + SHIFT * width + k * LANES);
        sum[k] = product[k] = (floats){0};
    }
    for (long r = 0; r < rows; r++) EACH {
        long i = r * width + k * LANES;
        floats value = LOAD(x + i), gradient = LOAD(dy + i);
        if (side) gradient += LOAD(side + i);
        gradient = where_open(gradient, g ? LOAD(y + i) : value * scale[k] + shift[k]);
        if (g) STORE(g + i, gradient);
        sum[k] += gradient;
        product[k] += gradient * (value - mean[k]);
    }
    EACH { store_f32(sums + k * LANES, sum[k]); store_f32(sums + width + k * LANES, product[k]); }
}

/* dx = a g + b x + c for one image, where a, b, c are the three rows of `factors`. */
INLINE void NAME(apply_gradients)(
    const T *dy, const T *g, const T *x, T *dx, const float *factors, const float *saved, long rows,
    long width)
{
    floats a[VECTORS], b[VECTORS], c[VECTORS], scale[VECTORS], shift[VECTORS];
    EACH {
        a[k] = load_f32(factors + k * LANES);
        b[k] = load_f32(factors + width + k * LANES);
        c[k] = load_f32(factors + 2 * width + k * LANES);
        scale[k] = load_f32(saved + SCALE * width + k * LANES);
        shift[k] = load_f32(saved + SHIFT * width + k * LANES);
    }
    for (long r = 0; r < rows; r++) EACH {
        long i = r * width + k * LANES;
        floats value = LOAD(x + i);
        floats gradient = g ? LOAD(g + i) : where_open(LOAD(dy + i), value * scale[k] + shift[k]);
        STORE(dx + i, gradient * a[k] + value * b[k] + c[k]);
    }
}

/* dx = scale (g - mean(g) - xhat mean(g xhat)), written as a g + b x + c. */
static void NAME(settle_gradients)(
    const float *saved, const float *partial, float *dweight, float *dbias, float *factors, long images,
    long pixels, long channels)
{
    long width = width_of(channels);
    double count = (double)images * pixels;
    for (long c = 0; c < channels; c++) {
        double sum = total(partial, images, width, channels, 0, c);
        double product = total(partial, images, width, channels, 1, c);
        double mean = saved[MEAN * width + c], inverse = saved[INVERSE * width + c];
        double a = saved[SCALE * width + c], b = -a * inverse * inverse * product / count;
        dweight[c] = product * inverse;
        dbias[c] = sum;
        for (long i = c; i < width; i += channels) {
            factors[i] = a;
            factors[width + i] = b;
            factors[2 * width + i] = -a * sum / count - b * mean;
        }
    }
}

void NAME(backward)(
    const T *dy, const T *side, const T *y, const T *x, T *dx, T *g, const float *saved, float *dweight,
    float *dbias, float *factors, float *partial, long images, long pixels, long channels, int threads)
{
    long width = width_of(channels), rows = pixels * channels / width, image = rows * width;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long m = 0; m < images; m++)
            for (long c = 0, n = images - 1 - m; c < width; c += LEAST) {
                long at = n * image + c;
                float *sums = partial + 2 * n * width + c;
                if (!g)
                    NAME(sum_gradients)(dy + at, 0, 0, x + at, 0, saved + c, sums, rows, width);
                else if (side)
                    NAME(sum_gradients)(dy + at, side + at, y + at, x + at, g + at, saved + c, sums, rows, width);
                else
                    NAME(sum_gradients)(dy + at, 0, y + at, x + at, g + at, saved + c, sums, rows, width);
            }
#pragma omp single
        NAME(settle_gradients)(saved, partial, dweight, dbias, factors, images, pixels, channels);
#pragma omp for schedule(static)
        for (long n = 0; n < images; n++)
            for (long c = 0; c < width; c += LEAST) {
                long at = n * image + c;
                if (g)
                    NAME(apply_gradients)(0, g + at, x + at, dx + at, factors + c, saved + c, rows, width);
                else
                    NAME(apply_gradients)(dy + at, 0, x + at, dx + at, factors + c, saved + c, rows, width);
            }
    }
}
