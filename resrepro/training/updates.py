"""How the updates of a run are made: called from Python one by one, or as replays of a recorded one.

Between two events of a run lies a stretch of updates at one learning rate. On a GPU an update is recorded as
a CUDA graph; what differs between updates lies on the device before the stretch begins, and nothing waits for
the device within it. Both ways make the same update and so compute the same.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from resrepro.data.feeds import Feed
from resrepro.training.optimizer import SGD, set_learning_rate

Step = Callable[[Tensor, Tensor], None]
Work = Callable[[], None]
BEFORE_RECORDING = 3  # updates in which the libraries choose their algorithms and allocate


class Updates:
    """The updates of a run, called from Python.

    Args:
        step: makes one from images and labels.
        feed: gives these.
        optimizer: takes the learning rate.
    """

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
    """The updates of a run as replays of one, which is recorded when the first of a session is due.

    Args:
        step, feed, optimizer: as above.
        changed: the tensors that a step writes, besides those of the optimizer.
    """

    def __init__(self, step: Step, feed: Feed, optimizer: SGD, changed: Sequence[Tensor]) -> None:
        super().__init__(step, feed, optimizer)
        self.changed = changed
        device = changed[0].device
        # CUDA's SGD reads the rate as float32, the CPU's as Python's float.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.zeros((), dtype=kind, device=device)

    @contextmanager
    def of(self, start: int, last: int) -> Iterator[None]:
        """While active, the batches of updates start..last-1 are on their way."""
        with super().of(start, last):
            self.slots = self.feed.slots(self.batches)
            self.replay: Work | None = None
            yield

    def stretch(self, start: int, stop: int, rate: float) -> Iterator[Work]:
        """Updates start..stop-1 at one learning rate, each to be called before the next is taken."""
        set_learning_rate(self.optimizer, rate, self.feed.recipe.momentum_form)
        self.rate.fill_(rate)
        for _ in self.slots.fill(start, stop):
            self.replay = self.replay or self._recorded()
            yield self.replay

    def _recorded(self) -> Work:
        momentum = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        changed = [tensor.detach() for tensor in (*self.changed, *momentum, *self.slots.changed)]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        try:
            return recorded(lambda: self.step(*self.slots.batch()), changed)
        finally:
            self.optimizer.zero_grad(set_to_none=True)  # they are the recording's own
            for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr


def recorded(work: Work, changed: Sequence[Tensor]) -> Work:
    """Record what a function does on the GPU; gives the function that replays it.

    Args:
        work: reads and writes tensors that stay in place, and waits for nothing. On a CPU nothing is
            recorded: it is itself what is replayed.
        changed: the tensors that it writes; all are left as they were.
    """
    before = [tensor.clone() for tensor in changed]
    if changed[0].device.type != "cuda":
        _repeat(work)
        torch._foreach_copy_(list(changed), before)
        return work
    here, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        _repeat(work)
    here.wait_stream(beside)
    torch._foreach_copy_(list(changed), before)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as that which pins the memory of photographs, go on meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def _repeat(work: Work) -> None:
    """Run the work as often as the libraries need; cuDNN tries its algorithms, and the graph keeps one."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        for _ in range(BEFORE_RECORDING):
            work()
    finally:
        torch.backends.cudnn.benchmark = before
