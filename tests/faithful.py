"""Does `--fast`, or an engine, change the science? Paired seeds, trained both ways, and their difference.

    python tests/faithful.py --data DIR --runs DIR [--nets digits-plain56 ...] [--read-only]
    python tests/faithful.py --data DIR --runs DIR --engines graph lanes      (on a GPU)

trains what is missing (the nets of CASES, each seed both ways), then prints for each net and set the paired
difference fast - default (or of the second engine from the first) of the error at the last iteration, its
95 % interval (Student's t), and the standard deviation of the first way over the seeds. The second is
faithful where the whole interval lies within one such deviation. The exit code is 1 where it does not.
"""

import argparse
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from resrepro.records import Run
from resrepro.records.collection import collect

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """A net whose error does not saturate, and how many seeds of it are trained."""

    experiment: str
    seeds: int
    options: tuple[str, ...]


CASES = (
    Case("digits-plain56", 32, ("--iterations", "120")),
    Case("digits-resnet56", 30, ("--iterations", "120")),
    Case("cifar10-resnet20", 5, ("--iterations", "2000", "--split", "45k5k")),
)


@dataclass(frozen=True)
class Verdict:
    """The paired difference of one error, in percentage points."""

    mean: float
    low: float
    high: float
    deviation: float
    pairs: int

    @property
    def held(self) -> bool:
        """Whether the whole interval lies within one standard deviation over the seeds."""
        return -self.deviation <= self.low and self.high <= self.deviation


def judge(default: dict[int, float], fast: dict[int, float]) -> Verdict:
    """The difference fast - default over the seeds that both have; two of them at least (ValueError)."""
    seeds = sorted(default.keys() & fast.keys())
    if len(seeds) < 2:
        raise ValueError("fewer than two seeds were trained in both modes")
    differences = [fast[seed] - default[seed] for seed in seeds]
    mean = statistics.mean(differences)
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * statistics.stdev(differences) / math.sqrt(len(seeds))
    deviation = statistics.stdev(default[seed] for seed in seeds)
    return Verdict(mean, mean - half, mean + half, deviation, len(seeds))


def errors_of(runs: list[Run], case: Case, way: str, name: str) -> dict[int, float]:
    """By seed, the error on a set at the last iteration of the finished runs of a mode or engine."""
    iterations = int(case.options[case.options.index("--iterations") + 1])
    return {
        run.seed: error
        for run in runs
        if run.experiment == case.experiment
        and run.finished
        and way in (run.env["mode"], run.env.get("engine"))
        and run.result["iterations"] == iterations
        and (error := run.last(name)) is not None
    }


def train(case: Case, way: str, asked: argparse.Namespace) -> None:
    """Train the seeds of one way that are missing; on a CPU each with one thread."""
    words = [sys.executable, "-m", "resrepro", "train", case.experiment, *case.options]
    words += ["--seeds", f"0-{case.seeds - 1}", "--runs", str(folder_of(way, asked))]
    words += ["--engine", way] if asked.engines else ["--threads", "1", "--device", "cpu"]
    words += ["--data", str(asked.data)] if case.experiment.startswith("cifar") else []
    words += ["--fast"] if way == "fast" else []
    subprocess.run(words, cwd=ROOT, check=True)


def folder_of(way: str, asked: argparse.Namespace) -> Path:
    """Where the runs of a way lie; those of two engines have the same names."""
    return Path(asked.runs, way if asked.engines else "").resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--nets", nargs="+", default=[case.experiment for case in CASES])
    parser.add_argument("--read-only", action="store_true", help="train nothing")
    parser.add_argument("--engines", nargs=2, default=[], help="two engines instead of the two modes")
    asked = parser.parse_args()
    ways = asked.engines or ("default", "fast")
    chosen = [case for case in CASES if case.experiment in asked.nets]
    for case in chosen if not asked.read_only else []:
        for way in ways:
            train(case, way, asked)
    runs = list(collect(sorted({folder_of(way, asked) for way in ways})).runs)
    held = True
    for case in chosen:
        for name in ("train", "val" if "45k5k" in case.options else "test"):
            verdict = judge(*(errors_of(runs, case, way, name) for way in ways))
            held &= verdict.held
            difference = f"{ways[1]} - {ways[0]} {verdict.mean:+6.2f}"
            print(
                f"{case.experiment:18} {name:5} {verdict.pairs:2} pairs: {difference} "
                f"[{verdict.low:+6.2f}, {verdict.high:+6.2f}], one deviation {verdict.deviation:5.2f}: "
                f"{'held' if verdict.held else 'NOT HELD'}"
            )
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
