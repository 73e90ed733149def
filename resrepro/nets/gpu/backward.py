"""Kernels, continued: the loss, the way back, and SGD. `forward` says how everything lies in memory."""

import triton
import triton.language as tl

from resrepro.nets.gpu.forward import normalised, place_of, product


@triton.jit
def classify(
    z, y, stats, fc, truth, gradient, fc_gradient, partial, tallies, N, G, P, FROM, ROW,
    PIXELS: tl.constexpr, K: tl.constexpr, CLASSES: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Average pooling, the fc layer and the loss, and their gradients, of BLOCK images a program.
    z (L, N x PIXELS, K) is the last map, y what its BN saw; fc (CLASSES, K) and biases of the first lane.
    Writes the gradient in front of the last ReLU, `partial` as `differentiate` does, the fc layer's part of
    the gradients to row g of (L, ROWS, ROW) from FROM on, and `tallies` (L, G, 4): loss, images whose label
    is not among the first one and five scores, images. Reads z twice, y once. WIDE is 16, the least that a
    product takes.
    """
    g, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, k, q, c = g * BLOCK + tl.arange(0, BLOCK), tl.arange(0, K), tl.arange(0, PART), tl.arange(0, WIDE)
    there, real = n < N, c < CLASSES
    at = (n[:, None, None] * PIXELS + q[None, :, None]) * K + k[None, None, :]
    z += lane * N * PIXELS * K
    pooled = tl.zeros((BLOCK, K), tl.float32)
    for first in range(0, PIXELS, PART):
        known = there[:, None, None] & (first + q < PIXELS)[None, :, None]
        pooled += tl.sum(tl.load(z + at + first * K, mask=known, other=0.0).to(tl.float32), 1)
    pooled = pooled / PIXELS
    fc += lane * P
    weight = tl.load(fc + c[None, :] * K + k[:, None], mask=real[None, :], other=0.0)
    bias = tl.load(fc + CLASSES * K + c, mask=real, other=0.0)
    logits = tl.dot(pooled, weight, input_precision="ieee") + bias[None, :]
    logits = tl.where(real[None, :], logits, float("-inf"))
    label = tl.load(truth + lane * N + n, mask=there, other=0)
    own = c[None, :] == label[:, None]
    highest = tl.max(logits, 1)
    powers = tl.exp(logits - highest[:, None])
    norm = tl.sum(powers, 1)
    score = tl.sum(tl.where(own, logits, 0.0), 1)
    loss = tl.where(there, tl.log(norm) + highest - score, 0.0)
    # What is no number is no right answer.
    ahead = tl.sum(tl.where(own | (logits < score[:, None]) | ~real[None, :], 0, 1), 1)
    tallies += (lane * G + g) * 4
    tl.store(tallies, tl.sum(loss, 0))
    tl.store(tallies + 1, tl.sum(tl.where(there & (ahead >= 1), 1.0, 0.0), 0))
    tl.store(tallies + 2, tl.sum(tl.where(there & (ahead >= 5), 1.0, 0.0), 0))
    tl.store(tallies + 3, tl.sum(tl.where(there, 1.0, 0.0), 0))
    wrong = (powers / norm[:, None] - tl.where(own, 1.0, 0.0)) / N
    wrong = tl.where(there[:, None] & real[None, :], wrong, 0.0)
    fc_gradient += (lane * ROWS + g) * ROW + FROM
    of_weight = tl.dot(tl.trans(pooled), wrong, input_precision="ieee")
    tl.store(fc_gradient + c[None, :] * K + k[:, None], of_weight, mask=real[None, :])
    tl.store(fc_gradient + CLASSES * K + c, tl.sum(wrong, 0), mask=real)
    of_pooled = (tl.dot(wrong, tl.trans(weight), input_precision="ieee") / PIXELS)[:, None, :]
    gradient += lane * N * PIXELS * K
    y += lane * N * PIXELS * K
    stats += lane * 4 * K + k
    mean, inverse = tl.load(stats + K)[None, None, :], tl.load(stats + 2 * K)[None, None, :]
    total, along = tl.zeros((K,), tl.float32), tl.zeros((K,), tl.float32)
    for first in range(0, PIXELS, PART):
        known = there[:, None, None] & (first + q < PIXELS)[None, :, None]
        z_ = tl.load(z + at + first * K, mask=known, other=0.0).to(tl.float32)
        y_ = tl.load(y + at + first * K, mask=known, other=0.0).to(tl.float32)
        told = tl.where(known & (z_ > 0), of_pooled, 0.0).to(gradient.dtype.element_ty)
        tl.store(gradient + at + first * K, told, mask=known)
        told = told.to(tl.float32)
        total += tl.sum(tl.sum(told, 1), 0)
        along += tl.sum(tl.sum(told * (y_ - mean) * inverse, 1), 0)
    partial += (lane * G + g) * 2 * K + k
    tl.store(partial, total)
    tl.store(partial + K, along)


@triton.jit
def add_tallies(tallies, whole, since, G):
    """Add the four tallies of an update to both (L, 4) that are kept."""
    lane, i = tl.program_id(0).to(tl.int64), tl.arange(0, 4)
    total = tl.zeros((4,), tl.float32)
    for g in range(G):
        total += tl.load(tallies + (lane * G + g) * 4 + i)
    at = lane * 4 + i
    tl.store(whole + at, tl.load(whole + at) + total)
    tl.store(since + at, tl.load(since + at) + total)


@triton.jit
def differentiate_norm(partial, back, gradients, M, G, FROM, ROW, ROWS, K: tl.constexpr, BLOCK: tl.constexpr):
    """The gradients of gamma and beta, to row 0 of (L, ROWS, ROW) from FROM on.
    back (L, 2, K): those of beta and gamma over M.
    """
    lane = tl.program_id(0).to(tl.int64)
    k, r = tl.arange(0, K), tl.arange(0, BLOCK)
    partial += lane * G * 2 * K + k[None, :]
    total, along = tl.zeros((K,), tl.float32), tl.zeros((K,), tl.float32)
    for first in range(0, G, BLOCK):
        at = (first + r)[:, None] * 2 * K
        own = (first + r < G)[:, None]
        total += tl.sum(tl.load(partial + at, mask=own, other=0.0), 0)
        along += tl.sum(tl.load(partial + at + K, mask=own, other=0.0), 0)
    gradients += lane * ROWS * ROW + FROM + k
    tl.store(gradients, along)
    tl.store(gradients + K, total)
    back += lane * 2 * K + k
    tl.store(back, total / M)
    tl.store(back + K, along / M)


@triton.jit
def go_through_norm(g, y, stats, back, dy, M, K: tl.constexpr, BLOCK: tl.constexpr):
    """dy, the gradient of BN's input, from that of its output g; all (L, M, K), once over each."""
    lane = tl.program_id(1).to(tl.int64)
    p, k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, K)
    live = (p < M)[:, None]
    at = lane * M * K + p[:, None] * K + k[None, :]
    raw = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
    _, unit = normalised(raw, stats, lane, k, K)
    back += lane * 2 * K + k
    value = tl.load(g + at, mask=live, other=0.0).to(tl.float32)
    value -= tl.load(back)[None, :] + unit * tl.load(back + K)[None, :]
    value *= tl.load(stats + lane * 4 * K + k)[None, :]
    tl.store(dy + at, value.to(dy.dtype.element_ty), mask=live)


@triton.jit
def seen_from(
    dy, w, p, M, tap, c, k,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """What one tap and channels k of dy give to the gradient of pixels p of a convolution's input."""
    n, h, across = place_of(p, H, W)
    up, across = h + 1 - tap // 3, across + 1 - tap % 3
    seen = (up >= 0) & (up < H) & (across >= 0) & (across < W) & (p < M)
    if S == 2:
        seen = seen & (up % 2 == 0) & (across % 2 == 0)
    source = ((n * (H // S) + up // S) * (W // S) + across // S)[:, None] * K + k[None, :]
    value = tl.load(dy + source, mask=seen[:, None], other=0.0)
    return product(value, tl.load(w + (tap * C + c)[None, :] * K + k[:, None]), PREC)


@triton.jit
def differentiate(
    dy, w, z, y, stats, carried, residual, gradient, partial, M, MY, G, P,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    BEFORE: tl.constexpr, SHORTCUT: tl.constexpr, BLOCK: tl.constexpr, FEW: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The gradient (L, M, C) in front of the ReLU that made a convolution's input, and its sums.
    dy (L, MY, K) is the gradient of the convolution's output, y what the BN before that ReLU saw. With
    SHORTCUT the input z is that of a block, whose output's gradient `carried` (L, MY, K) comes back through
    the shortcut as well; without it z is not read, but computed from y. `partial`: sums of the gradient, and
    of its products with the normalised y, which are the gradients of that BN's beta and gamma. Reads dy nine
    times, out of the cache.
    """
    g, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p, c, k = g * BLOCK + tl.arange(0, BLOCK), tl.arange(0, C), tl.arange(0, K)
    dy += lane * MY * K
    w += lane * P
    total = tl.zeros((BLOCK, C), tl.float32)
    if FEW < K * 9:
        for step in range(0, 9 * K, FEW):
            few = step % K + tl.arange(0, FEW)
            total += seen_from(dy, w, p, M, step // K, c, few, H, W, C, K, S, PREC)
    else:
        for tap in tl.static_range(9):
            total += seen_from(dy, w, p, M, tap, c, k, H, W, C, K, S, PREC)
    live = (p < M)[:, None]
    here = lane * M * C + p[:, None] * C + c[None, :]
    raw = tl.load(y + here, mask=live, other=0.0).to(tl.float32)
    value, unit = normalised(raw, stats, lane, c, C)
    if SHORTCUT:
        n, h, w_ = place_of(p, H, W)
        value = tl.load(z + here, mask=live, other=0.0).to(tl.float32)
        reached = live
        if S == 2:
            reached = live & ((h % 2 == 0) & (w_ % 2 == 0))[:, None]
        source = ((n * (H // S) + h // S) * (W // S) + w_ // S)[:, None] * K + (c + BEFORE)[None, :]
        back = tl.load(carried + lane * MY * K + source, mask=reached, other=0.0).to(tl.float32)
        total += tl.load(residual + lane) * back
    told = tl.where(live & (value > 0), total, 0.0).to(gradient.dtype.element_ty)
    tl.store(gradient + here, told, mask=live)
    told = told.to(tl.float32)
    partial += (lane * G + g) * 2 * C + c
    tl.store(partial, tl.sum(told, 0))
    tl.store(partial + C, tl.sum(told * unit, 0))


@triton.jit
def differentiate_filters(
    x, dy, gradients, M, MX, CHUNK, FROM, ROW, ROWS,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The gradient of TAPS of the nine taps over CHUNK pixels, to row g of (L, ROWS, ROW) from FROM on.
    x (L, MX, C) is the convolution's input, dy (L, M, K) the gradient of its output: both are read once for
    each tap, out of the cache.
    """
    g, lane, first = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * TAPS
    c, k, r = tl.arange(0, C), tl.arange(0, K), tl.arange(0, BLOCK)
    x += lane * MX * C
    dy += lane * M * K
    gradients += (lane * ROWS + g) * ROW + FROM
    for tap in range(first, first + TAPS):
        total = tl.zeros((C, K), tl.float32)
        for start in range(g * CHUNK, tl.minimum(g * CHUNK + CHUNK, M), BLOCK):
            p = start + r
            n, h, w = place_of(p, H, W)
            live = p < M
            up, across = h * S + tap // 3 - 1, w * S + tap % 3 - 1
            seen = (up >= 0) & (up < H * S) & (across >= 0) & (across < W * S) & live
            source = ((n * (H * S) + up) * (W * S) + across)[:, None] * C + c[None, :]
            value = tl.load(x + source, mask=seen[:, None], other=0.0)
            behind = tl.load(dy + p[:, None] * K + k[None, :], mask=live[:, None], other=0.0)
            total += product(tl.trans(value), behind, PREC)
        tl.store(gradients + (tap * C + c)[:, None] * K + k[None, :], total)


@triton.jit
def descend(
    parameters, momentum, narrow, gradients, decay, rates, P, FROM, ROW, keep,
    ROWS: tl.constexpr, NESTEROV: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SGD on ROW of the P parameters of each lane, from FROM on: the gradients' ROWS parts are added first.
    v = keep v + (gradient + decay p), p -= rate v; Nesterov has p -= rate (gradient + decay p + keep v);
    narrow (L, P) takes p in the maps' type.
    """
    lane, i = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own, r = i < ROW, tl.arange(0, ROWS)
    parts = gradients + lane * ROWS * ROW + r[:, None] * ROW + i[None, :]
    gradient = tl.sum(tl.load(parts, mask=own[None, :], other=0.0), 0)
    at = lane * P + FROM + i
    p, v = tl.load(parameters + at, mask=own), tl.load(momentum + at, mask=own)
    gradient += tl.load(decay + FROM + i, mask=own) * p
    v = keep * v + gradient
    p -= tl.load(rates + lane) * (gradient + keep * v if NESTEROV else v)
    tl.store(momentum + at, v, mask=own)
    tl.store(parameters + at, p, mask=own)
    tl.store(narrow + at, p.to(narrow.dtype.element_ty), mask=own)
