"""Kernels for the nets of Section 4.2 on a GPU, in Triton: several nets ("lanes") trained side by side.

Every tensor has a leading axis of lanes and every kernel a grid axis of lanes; nothing of a lane depends on
another. L lanes see maps of M = images x height x width pixels, channels last, (L, M, C), in bf16 or
float32, and have P parameters each, one convolution (3, 3, C, K) and one BN behind the other. All sums are
float32. A sum over a map is first one of each program, kept in `partial` (L, G, 2, K), then added in a fixed
order by the kernel that needs it: there are no atomics, so the same numbers give the same bits.

`stats` (L, 4, K) holds of each channel what BN makes of a map y: z = (y - mean) scale + beta, with the rows
scale, mean, 1 / deviation, beta. H and W are those of the map that is written, M, G, P and the like sizes.
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: computes on a CPU, slowly


@triton.jit
def place_of(p, H: tl.constexpr, W: tl.constexpr):
    """Image, row and column of pixels."""
    return p // (H * W), p // W % H, p % W


@triton.jit
def product(a, b, PREC: tl.constexpr):
    """A matrix product, added up in float32; "wide" is for the interpreter, which knows no bf16."""
    if PREC == "wide":
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision=PREC)


@triton.jit
def normalised(y, stats, lane, k, K: tl.constexpr):
    """BN of values y (rows, K), and what its backward pass needs: (y - mean) / deviation."""
    stats += lane * 4 * K + k
    centred = y - tl.load(stats + K)[None, :]
    z = centred * tl.load(stats)[None, :] + tl.load(stats + 3 * K)[None, :]
    return z, centred * tl.load(stats + 2 * K)[None, :]


@triton.jit
def draw_images(
    pixels, labels, mean, divisor, row, order, corners, coins, x, truth, N, M, ROWS,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PAD: tl.constexpr, VALUE: tl.constexpr,
    FIRST: tl.constexpr, FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x (L, M, C): N images, each cropped and flipped as drawn, less the mean; zeros from channel 3 on.
    pixels (.., 3, H, W) uint8 and labels are all that there are; mean (3, H, W), divisor (3,). Of the tables
    order (L, ROWS, N), corners (L, ROWS, 2, N) and coins (L, ROWS, N) row number `row` counts. The mean is
    subtracted before padding if FIRST. truth (L, N) are the labels. Reads and writes everything once.
    """
    lane, at = tl.program_id(1).to(tl.int64), tl.load(row)
    p, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, C)
    n, h, w = place_of(p, H, W)
    live = p < M
    table = lane * ROWS + at
    image = tl.load(order + table * N + n, mask=live, other=0)
    tl.store(truth + lane * N + n, tl.load(labels + image, mask=live), mask=live & (h + w == 0))
    if FLIP:
        w = tl.where(tl.load(coins + table * N + n, mask=live, other=1.0) < 0.5, W - 1 - w, w)
    up, across = h, w
    if PAD > 0:
        corner = corners + table * 2 * N + n
        up += tl.load(corner, mask=live, other=0).to(tl.int32) - PAD
        across += tl.load(corner + N, mask=live, other=0).to(tl.int32) - PAD
    inside = live & (up >= 0) & (up < H) & (across >= 0) & (across < W)
    colour = (c < 3)[None, :]
    seen = inside[:, None] & colour
    plane = (c * H * W)[None, :]
    source = pixels + image[:, None] * (3 * H * W) + plane + (up * W + across)[:, None]
    value = tl.load(source, mask=seen, other=0).to(tl.float32)
    by = tl.load(divisor + c, mask=c < 3, other=1.0)[None, :]
    if FIRST:
        level = tl.load(mean + plane + (up * W + across)[:, None], mask=seen, other=0.0)
        value = tl.where(seen, tl.div_rn(value - level, by + tl.zeros_like(value)), VALUE)
    else:
        level = tl.load(mean + plane + (h * W + w)[:, None], mask=live[:, None] & colour, other=0.0)
        value = tl.div_rn(tl.where(seen, value, VALUE) - level, by + tl.zeros_like(value))
    value = tl.where(colour, value, 0.0)
    x += lane * M * C + p[:, None] * C + c[None, :]
    tl.store(x, value.to(x.dtype.element_ty), mask=live[:, None])


@triton.jit
def seen_through(
    x, w, p, M, tap, c, k,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """What one tap and channels c of the input x give to pixels p of a convolution."""
    n, h, across = place_of(p, H, W)
    up, across = h * S + tap // 3 - 1, across * S + tap % 3 - 1
    seen = (up >= 0) & (up < H * S) & (across >= 0) & (across < W * S) & (p < M)
    source = ((n * (H * S) + up) * (W * S) + across)[:, None] * C + c[None, :]
    value = tl.load(x + source, mask=seen[:, None], other=0.0)
    return product(value, tl.load(w + (tap * C + c)[:, None] * K + k[None, :]), PREC)


@triton.jit
def convolve(
    x, w, y, partial, M, MX, G, P,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    BLOCK: tl.constexpr, FEW: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """y (L, M, K): x (L, MX, C) by 3x3 filters of stride S, padding 1; w is that of the first lane.
    `partial`: of each program's pixels the mean, and the squared deviations from it. Reads x nine times,
    out of the cache, and writes y once.
    """
    g, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p, c, k = g * BLOCK + tl.arange(0, BLOCK), tl.arange(0, C), tl.arange(0, K)
    x += lane * MX * C
    w += lane * P
    total = tl.zeros((BLOCK, K), tl.float32)
    if FEW < C * 9:  # at a time, for float32 is multiplied in registers
        for step in range(0, 9 * C, FEW):
            few = step % C + tl.arange(0, FEW)
            total += seen_through(x, w, p, M, step // C, few, k, H, W, C, K, S, PREC)
    else:
        for tap in tl.static_range(9):
            total += seen_through(x, w, p, M, tap, c, k, H, W, C, K, S, PREC)
    live = (p < M)[:, None]
    y += lane * M * K
    told = total.to(y.dtype.element_ty)
    tl.store(y + p[:, None] * K + k[None, :], told, mask=live)
    told = tl.where(live, told.to(tl.float32), 0.0)
    mean = tl.sum(told, 0) / tl.minimum(M - g * BLOCK, BLOCK)
    apart = tl.where(live, told - mean[None, :], 0.0)
    partial += (lane * G + g) * 2 * K + k
    tl.store(partial, mean)
    tl.store(partial + K, tl.sum(apart * apart, 0))


@triton.jit
def find_statistics(
    partial, affine, running, stats, M, G, P, ROWS, eps, momentum, K: tl.constexpr, BLOCK: tl.constexpr
):
    """BN's statistics of a map from the parts of `convolve`, ROWS pixels each, and the running averages.
    affine: gamma and beta of the first lane, P apart; running (L, 2, K): mean and variance. Squares are
    those about the mean (Chan, Golub, LeVeque), so that a mean far from zero costs no digits.
    """
    lane = tl.program_id(0).to(tl.int64)
    k, r = tl.arange(0, K), tl.arange(0, BLOCK)
    partial += lane * G * 2 * K + k[None, :]
    total = tl.zeros((K,), tl.float32)
    for first in range(0, G, BLOCK):
        here = first + r
        count = tl.minimum(M - here * ROWS, ROWS).to(tl.float32)
        part = tl.load(partial + here[:, None] * 2 * K, mask=(here < G)[:, None], other=0.0)
        total += tl.sum(part * count[:, None], 0)
    mean = total / M
    squares = tl.zeros((K,), tl.float32)
    for first in range(0, G, BLOCK):
        here = first + r
        count = tl.minimum(M - here * ROWS, ROWS).to(tl.float32)
        own = (here < G)[:, None]
        part = tl.load(partial + here[:, None] * 2 * K, mask=own, other=0.0)
        within = tl.load(partial + here[:, None] * 2 * K + K, mask=own, other=0.0)
        apart = part - mean[None, :]
        squares += tl.sum(tl.where(own, within + count[:, None] * apart * apart, 0.0), 0)
    variance = squares / M
    inverse = 1.0 / tl.sqrt_rn(variance + eps)
    affine += lane * P + k
    stats += lane * 4 * K + k
    tl.store(stats, tl.load(affine) * inverse)
    tl.store(stats + K, mean)
    tl.store(stats + 2 * K, inverse)
    tl.store(stats + 3 * K, tl.load(affine + K))
    running += lane * 2 * K + k
    tl.store(running, tl.load(running) * (1 - momentum) + mean * momentum)
    unbiased = variance * (M / (M - 1))
    tl.store(running + K, tl.load(running + K) * (1 - momentum) + unbiased * momentum)


@triton.jit
def activate(
    y, stats, x, residual, z, M, MX,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    BEFORE: tl.constexpr, SHORTCUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z = relu(BN(y) + residual x shortcut(x)), all (L, M, K) but x (L, MX, C); once over each.
    residual (L,) is 1, or 0 of a plain net. Option A: every S-th pixel of x, with zeros around its channels,
    which begin at BEFORE. Without SHORTCUT z = relu(BN(y)).
    """
    lane = tl.program_id(1).to(tl.int64)
    p, k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, K)
    live = (p < M)[:, None]
    at = p[:, None] * K + k[None, :]
    raw = tl.load(y + lane * M * K + at, mask=live, other=0.0).to(tl.float32)
    value, _ = normalised(raw, stats, lane, k, K)
    if SHORTCUT:
        n, h, w = place_of(p, H, W)
        c = k - BEFORE
        source = ((n * (H * S) + h * S) * (W * S) + w * S)[:, None] * C + c[None, :]
        known = live & ((c >= 0) & (c < C))[None, :]
        carried = tl.load(x + lane * MX * C + source, mask=known, other=0.0).to(tl.float32)
        value += tl.load(residual + lane) * carried
    z += lane * M * K + at
    value = tl.where(value <= 0.0, 0.0, value)  # NaN stays what it is, and is seen in the loss
    tl.store(z, value.to(z.dtype.element_ty), mask=live)
