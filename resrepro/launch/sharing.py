"""Which runs share a command: those that one program trains side by side on a GPU."""

import math
from collections.abc import Sequence
from importlib.util import find_spec

from resrepro.launch.local import BASE_BYTES, LAYER_BYTES, Job, device_kind
from resrepro.machine import gpus
from resrepro.spec import Spec
from resrepro.training import lane_group


def share_commands(
    wanted: Sequence[tuple[Spec, int]], words: Sequence[str], device: str, *, engine: str = "auto",
    jobs: int | None = None,
) -> list[Job]:  # fmt: skip
    """The jobs of runs that share the options `words`.

    Those that can be lanes of one program (see `training.lane_group`) share commands on NVIDIA GPUs: at least
    as many as there are GPUs, and no more runs in one than the memory of the fullest GPU holds. Where it is
    said how many `jobs` run at once each has its own, unless the engine is named as well.
    """
    shared = engine == "lanes" or (engine == "auto" and jobs is None)
    on_gpu = shared and device_kind(device) == "cuda" and find_spec("triton") is not None
    free = list(gpus().values()) if on_gpu else []
    groups: dict[object, list[tuple[Spec, int]]] = {}
    for spec, seed in wanted:
        groups.setdefault((lane_group(spec) if on_gpu else None) or (spec, seed), []).append((spec, seed))
    each_job = []
    for group in groups.values():
        first = group[0][0]
        each = LAYER_BYTES * first.depth * first.recipe.batch_size
        rooms = [(size - BASE_BYTES) // each for size in free if size is not None]
        most = min([math.ceil(len(wanted) / max(1, len(free))), *rooms])
        seeds_of: dict[Spec, tuple[int, ...]] = {}
        for spec, seed in group:
            seeds_of[spec] = (*seeds_of.get(spec, ()), seed)
        for seeds in dict.fromkeys(seeds_of.values()):  # a command takes each of its nets with each seed
            names = [spec.experiment for spec, own in seeds_of.items() if own == seeds]
            step = max(1, most // len(names))
            for part in (seeds[start : start + step] for start in range(0, len(seeds), step)):
                told = ["--seeds", ",".join(map(str, part))]
                if len(part) == 1:  # `--seeds 3` would be three of them
                    told = ["--seed", str(part[0])]
                command = ("train", *names, *told, *words)
                each_job += [Job(name, seed, command) for name in names for seed in part]
    return each_job
