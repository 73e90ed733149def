"""Which runs share a command: those that one program trains side by side on a GPU."""

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from resrepro.launch.local import BASE_BYTES, LAYER_BYTES, Job, device_kind
from resrepro.machine import gpus
from resrepro.spec import Spec
from resrepro.training import LANES_BY_DEFAULT, lane_group

Wanted = Sequence[tuple[Spec, int]]  # runs: what to train with which seed


def sharing_pays(device: str, engine: str, jobs: int | None, micro_batch: int | None, precision: str) -> bool:
    """Whether runs on a device may be lanes: `auto` takes them unless the options ask for another way."""
    by_default = engine == "auto" and jobs is micro_batch is None and precision in LANES_BY_DEFAULT
    on_gpu = device_kind(device) == "cuda" and find_spec("triton") is not None
    return on_gpu and (engine == "lanes" or by_default)


def share_commands(wanted: Wanted, words: Sequence[str], places: Sequence[str]) -> list[Job]:
    """The jobs of runs that share the options `words`, on the GPUs of `places`.

    Those that can be lanes of one program (see `training.lane_group`) share commands: no more in one than the
    memory of the fullest of these GPUs holds, and as many commands as keep all busy, larger nets on more.
    """
    groups: dict[object, list[tuple[Spec, int]]] = {}
    for spec, seed in wanted:
        groups.setdefault(lane_group(spec) or (spec, seed), []).append((spec, seed))
    free = [size for gpu, size in gpus().items() if gpu in places and size is not None]
    work, count = sum(spec.depth for spec, _ in wanted), len(set(places))
    jobs = []
    for group in groups.values():
        first = group[0][0]
        rooms = [
            (size - BASE_BYTES) // (LAYER_BYTES * first.depth * first.recipe.batch_size) for size in free
        ]
        commands = math.ceil(count * first.depth * len(group) / work)
        for names, seeds in _commands(group, max(1, min([math.ceil(len(group) / commands), *rooms]))):
            told = ("train", *names, "--seeds", ",".join(map(str, seeds)), *words)
            if len(seeds) == 1:  # `--seeds 3` would be three of them
                told = ("train", *names, "--seed", str(seeds[0]), *words)
            jobs += [Job(name, seed, told) for name in names for seed in seeds]
    return jobs


def _commands(group: Wanted, most: int) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Nets and seeds of commands, each of which takes every one of its nets with every one of its seeds."""
    seeds_of: dict[str, tuple[int, ...]] = {}
    for spec, seed in group:
        seeds_of[spec.experiment] = (*seeds_of.get(spec.experiment, ()), seed)
    for seeds in dict.fromkeys(seeds_of.values()):
        names = [name for name, own in seeds_of.items() if own == seeds]
        for some in (names[start : start + most] for start in range(0, len(names), most)):
            step = max(1, most // len(some))
            yield from ((some, seeds[start : start + step]) for start in range(0, len(seeds), step))
