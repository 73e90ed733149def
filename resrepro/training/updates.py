"""Updates (Sections 3.4 and 4.2): their learning rate, SGD with momentum, and how a stretch of them is made.

Between two events of a run lies a stretch of updates at one learning rate. They are called from Python one by
one, or on a GPU one is recorded as a CUDA graph and replayed: then what differs between updates lies on the
device before the stretch begins, and nothing waits for the device within it. Both compute the same.
"""

import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from inspect import unwrap
from weakref import WeakSet

import torch
from torch import Tensor, nn

from resrepro.data.feeds import Feed, Slots
from resrepro.spec.recipe import ImageNetRecipe, Recipe
from resrepro.training import world_size

Step = Callable[[Tensor, Tensor], None]
Work = Callable[[], None]
BEFORE_RECORDING = 3  # updates in which the libraries choose their algorithms and allocate
# Those there are share their memory: one is replayed after the other.
recordings: WeakSet[torch.cuda.CUDAGraph] = WeakSet()


def learning_rate(
    recipe: Recipe, iteration: int, warmup_switch: int | None = None, drops: Sequence[int] | None = None
) -> float:
    """The rate of update `iteration`, counted from 0: 32,000 is the first after a drop at 32,000. A warm-up
    ended at `warmup_switch` (None while it lasts); `drops` are those that a `Plateau` found, if not the
    recipe's.
    """
    if recipe.warmup_lr and (warmup_switch is None or iteration < warmup_switch):
        return recipe.warmup_lr
    fallen = recipe.lr_drops if drops is None else drops
    return float(recipe.lr / recipe.lr_divisor ** sum(iteration >= drop for drop in fallen))


@dataclass
class Plateau:
    """Watches the validation error at each sample and says when the rate drops: after `plateau_patience`
    samples in a row of which none was at least `plateau_gain` points better than the best since the drop
    before, as often as the recipe has fixed drops.
    """

    recipe: ImageNetRecipe
    drops: list[int] = field(default_factory=list)
    best: float = float("inf")
    waited: int = 0

    def see(self, iteration: int, top1_err: float) -> bool:
        """Take note of a sample; True if the rate drops from `iteration` on."""
        if top1_err <= self.best - self.recipe.plateau_gain:
            self.best, self.waited = top1_err, 0
            return False
        self.waited += 1
        if self.waited < self.recipe.plateau_patience or len(self.drops) >= len(self.recipe.lr_drops):
            return False
        self.drops.append(iteration)
        self.best, self.waited = top1_err, 0
        return True


class SGD(torch.optim.SGD):
    """PyTorch's, without the wrappers that import its compiler, which takes longer than a short run."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    state_dict = unwrap(torch.optim.SGD.state_dict)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def make_optimizer(net: nn.Module, recipe: Recipe) -> SGD:
    """SGD over all parameters; weight decay on BN and biases only if the recipe says so."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]  # BN scales and shifts, and the fc bias
    nesterov, decay = recipe.momentum_form == "nesterov", recipe.weight_decay
    own = decay if recipe.decay_bn_bias else 0.0
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": own}]
    optimizer = SGD(groups, recipe.lr, recipe.momentum, nesterov=nesterov, fused=True)
    for parameter in net.parameters():
        # PyTorch would begin with memory as it finds it, and keep that if the first update overflows.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.SGD, lr: float, momentum_form: str) -> None:
    """Set the rate of the next update. PyTorch keeps u = m u + g and steps by lr u; Caffe keeps v = m v + lr
    g and steps by v. While the rate is constant v = lr u and both are the same. When it changes, the Caffe
    form carries v over, so u is rescaled by old / new.
    """
    for group in optimizer.param_groups:
        old, group["lr"] = group["lr"], lr
        if old == lr or momentum_form != "caffe":
            continue
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"].mul_(old / lr)


def differentiate(loss: Tensor, net: nn.Module, *, first: bool) -> None:
    """Set the gradients of a net's parameters, or add to those of the passes before."""
    if world_size() > 1:  # they are exchanged where PyTorch accumulates them
        if first:
            net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return
    parameters = list(net.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        if gradient.stride() != parameter.stride():  # the fused step takes both as they lie in memory
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient if first or parameter.grad is None else parameter.grad.add_(gradient)


def descend(optimizer: SGD, scaler: torch.amp.GradScaler, skipped: Tensor) -> None:
    """A step of SGD; in fp16 it is left out and counted where a gradient is not finite."""
    if not scaler.is_enabled():
        optimizer.step()
        return
    assert scaler._scale is not None
    scale = scaler._scale.clone()
    scaler.step(optimizer)
    scaler.update()  # a smaller scale than before tells that the step was left out
    skipped += scaler._scale < scale


class Updates:
    """The updates of a run, called from Python: `step` makes one from images and labels."""

    def __init__(self, step: Step, feed: Feed, optimizer: SGD) -> None:
        self.step, self.feed, self.optimizer = step, feed, optimizer

    @contextmanager
    def of(self, start: int, last: int) -> Iterator[None]:
        """While active, the batches of updates start..last-1 are on their way."""
        with closing(self.feed.batches(start, last)) as self.batches:
            yield

    def stretch(self, start: int, stop: int, rate: float) -> Iterator[Work]:
        """Updates start..stop-1 at one learning rate, each to be called before the next is taken."""
        set_learning_rate(self.optimizer, rate, self.feed.recipe.momentum_form)
        for images, labels in itertools.islice(self.batches, stop - start):
            yield functools.partial(self.step, images, labels)


class RecordedUpdates(Updates):
    """The updates of a run as replays of one, recorded when due; a step writes `changed` and the momentum."""

    def __init__(self, step: Step, feed: Feed, optimizer: SGD, changed: Sequence[Tensor]) -> None:
        super().__init__(step, feed, optimizer)
        self.changed, device = changed, changed[0].device
        self.slots: Slots | None = None
        self.replay: Work | None = None
        # CUDA's SGD reads the rate as float32, the CPU's as Python's float.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.zeros((), dtype=kind, device=device)

    def stretch(self, start: int, stop: int, rate: float) -> Iterator[Work]:
        """Updates start..stop-1 at one learning rate, each to be called before the next is taken."""
        set_learning_rate(self.optimizer, rate, self.feed.recipe.momentum_form)
        self.rate.fill_(rate)
        self.slots = self.slots or self.feed.slots(self.batches)
        for _ in self.slots.fill(start, stop):
            self.replay = self.replay or self._recorded(self.slots)
            yield self.replay

    def _recorded(self, slots: Slots) -> Work:
        momentum = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        changed = [tensor.detach() for tensor in (*self.changed, *momentum, *slots.changed)]
        lr = self.optimizer.param_groups[0]["lr"]  # of all groups
        try:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
            return recorded(lambda: self.step(*slots.batch()), changed)
        finally:
            self.optimizer.zero_grad(set_to_none=True)  # they are the recording's own
            for group in self.optimizer.param_groups:
                group["lr"] = lr


def recorded(work: Work, changed: Sequence[Tensor]) -> Work:
    """Record what a function does on the GPU, with tensors that stay in place and waiting for nothing; gives
    the function that replays it. On a CPU nothing is recorded: it is itself what is replayed. `changed` are
    the tensors that it writes; all are left as they were.
    """
    before = [tensor.clone() for tensor in changed]
    if changed[0].device.type != "cuda":
        _repeat(work)
        torch._foreach_copy_(list(changed), before)
        return work
    here, (beside, recording) = torch.cuda.current_stream(), _streams(changed[0].device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        _repeat(work)
    here.wait_stream(beside)
    torch._foreach_copy_(list(changed), before)
    with without_garbage():
        pool = next((graph.pool() for graph in recordings), None)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as that which pins the memory of photographs, go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=recording, capture_error_mode="thread_local"):
            work()
    recordings.add(graph)
    return graph.replay


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """A GPU's own, as PyTorch's for recordings is that of whichever GPU was first: one for what comes before
    them, one for them. They are two, as what cuBLAS allocates for a stream is given back with its graph.
    """
    return torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def without_garbage() -> Iterator[None]:
    """Nothing is collected within, and what was garbage before is gone: the graph of an earlier run, in a
    cycle with it, would spoil the recording during which it is dropped.
    """
    gc.collect()
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _repeat(work: Work) -> None:
    """Run the work as often as the libraries need; cuDNN tries its algorithms, and the graph keeps one."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        for _ in range(BEFORE_RECORDING):
            work()
    finally:
        torch.backends.cudnn.benchmark = before
