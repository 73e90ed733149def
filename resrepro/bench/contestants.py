"""Who takes part in a benchmark, and what each is asked to do. Nothing here imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resrepro.errors import UsageError
from resrepro.spec.specs import check_depth, net_label

USUAL = "usual"
USUAL_WORKERS = (0, 2)  # of its DataLoader: both are measured, the better one counts
EAGER = "-eager"
TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has, made up


@dataclass(frozen=True)
class Arithmetic:
    """What a mode computes with: the recipe's precision, and an engine (None: the mode's own choice)."""

    precision: str
    engine: str | None


MODES: Mapping[str, Arithmetic] = {
    USUAL: Arithmetic("float32", None),
    "default": Arithmetic("float32", None),
    "fast": Arithmetic("bf16", None),
    "default-eager": Arithmetic("float32", "eager"),
    "fast-eager": Arithmetic("bf16", "eager"),
}
"""By name: the usual loop, then the modes of ours; `-eager` is the same mode without its engine."""


@dataclass(frozen=True)
class Contestant:
    """One way to train one net; `workers` are those of the usual loop's DataLoader."""

    mode: str
    depth: int
    plain: bool
    batch_size: int
    workers: int | None = None

    @property
    def label(self) -> str:
        """`ResNet-56, fast`, for sentences."""
        told = "" if self.workers is None else f" with {self.workers} workers"
        return f"{net_label(self.depth, self.plain)}, {self.mode}{told}"

    @property
    def arithmetic(self) -> Arithmetic:
        """What its mode computes with."""
        return MODES[self.mode]

    def to_json(self) -> dict[str, Any]:
        """As it is told to the child process."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """A benchmark: which nets and modes, how long each turn is, how many turns each has, and where."""

    depths: tuple[int, ...]
    plain: bool
    batch_size: int
    rounds: int
    seconds: float
    modes: tuple[str, ...]
    threads: int | None
    device: str

    def contestants(self, depth: int) -> tuple[Contestant, ...]:
        """Who measures a net; the usual loop once for each number of workers."""
        return tuple(
            Contestant(mode, depth, self.plain, self.batch_size, workers)
            for mode in self.modes
            for workers in (USUAL_WORKERS if mode == USUAL else (None,))
        )


def check_plan(plan: Plan) -> None:
    """Refuse what cannot be measured, before anything is started.

    Raises:
        UsageError: if a depth is impossible, a mode unknown or a number out of range.
    """
    for depth in plan.depths:
        check_depth(depth)
    if not plan.depths or len(set(plan.depths)) < len(plan.depths):
        raise UsageError("give each --depth once.")
    if plan.rounds < 1:
        raise UsageError(f"--rounds must be at least 1, not {plan.rounds}.")
    if not 0 < plan.seconds <= 3600:
        raise UsageError(f"--seconds must be above 0 and at most 3600, not {plan.seconds:g}.")
    if not 1 < plan.batch_size <= TRAINING_IMAGES:
        raise UsageError(f"--batch-size must be from 2 to {TRAINING_IMAGES}, not {plan.batch_size}.")
    if plan.threads is not None and plan.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {plan.threads}.")


def parse_modes(text: str) -> tuple[str, ...]:
    """`usual,fast` -> ("usual", "fast").

    Raises:
        UsageError: if one is unknown, named twice, or there is none.
    """
    modes = tuple(part.strip() for part in text.split(",") if part.strip())
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"no mode {mode!r}: there are {', '.join(MODES)}.")
    if not modes or len(set(modes)) < len(modes):
        raise UsageError(f"--modes takes modes, each once, such as usual,default,fast, not {text!r}.")
    return modes


def twin_without_engine(mode: str, modes: Sequence[str]) -> str | None:
    """The mode that differs by its engine only, if it takes part."""
    twin = f"{mode}{EAGER}"
    return twin if twin in modes else None
