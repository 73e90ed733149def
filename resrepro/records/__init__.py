"""Reading run records. A record that is broken is named and left out; the others are still used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from resrepro.errors import RecordError
from resrepro.records import reading
from resrepro.records.reading import Curve, Evaluation, Responses, naming, read_json, require
from resrepro.spec import digest_of
from resrepro.spec.catalogue import find
from resrepro.spec.recipe import FAMILIES, spell

FINISHED = ("complete", "shortened")
CIFAR10_TEST = 10_000  # images of its whole test set


@dataclass(frozen=True)
class Run:
    """One run's record."""

    folder: Path
    name: str
    seed: int
    spec: Mapping[str, Any]
    env: Mapping[str, Any]
    result: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()  # of its checkpoints, whichever; `evaluation` picks what counts
    responses: Responses | None = None  # of its trained net
    broken: tuple[str, ...] = ()  # a sentence on each evaluation, and on responses, that could not be read

    def setting(self, key: str) -> str:
        """A setting of its recipe or one of OTHER_SETTINGS, as one types it; empty where it has none."""
        own = {**self.spec["recipe"], **self.spec, "mode": self.env["mode"], "seed": self.seed}
        return "" if own.get(key) is None else spell(own[key])

    @property
    def runs_folder(self) -> Path:
        """The runs folder that a command names for it: none of published runs, no path of this machine."""
        top = self.folder.parent.parent
        return Path("runs") if top.is_absolute() or top.name == "results" else top

    @property
    def experiment(self) -> str:
        """The catalogue experiment that the run belongs to or derives from."""
        return str(self.spec["experiment"])

    @cached_property
    def paper_exact(self) -> bool:
        """Whether its numbers may stand in the paper's own cell: unchanged specification, complete official
        data, default mode, no departure. (The digits, which depart from the paper, have cells of their own.)
        """
        told = self.result["notices"] or (self.result["departures"] and self.spec["dataset"] != "digits")
        if told or self.env["mode"] != "default":
            return False
        return self.digest == find(self.experiment).spec().digest

    @property
    def status(self) -> str:
        """complete, shortened, partial or diverged."""
        return str(self.result["status"])

    @property
    def finished(self) -> bool:
        """Whether the run reached its last iteration."""
        return self.status in FINISHED

    @property
    def data_key(self) -> str:
        """The checksums of what it was trained and validated on; CIFAR-10's test images train nothing."""
        free = "test" if self.spec["dataset"] == "cifar10" else None
        sums = self.env["data"]["sha256"]
        return json.dumps({part: sums[part] for part in sums if part != free}, sort_keys=True)

    @property
    def seed_group(self) -> tuple[str, str, str]:
        """What runs must share to enter one mean: specification, data and mode; all but the seed."""
        return self.digest, self.data_key, str(self.env["mode"])

    @property
    def digest(self) -> str:
        """The digest of its specification."""
        return digest_of(self.spec)

    @property
    def headline_split(self) -> str:
        """The set of the headline error: "test", or "val" under the 45k/5k split and for photographs."""
        return str(self.result["headline"])

    @property
    def family(self) -> str:
        """`cifar` or `imagenet`: which nets and which kind of recipe."""
        return FAMILIES.get(str(self.spec["dataset"]), "cifar")

    def last(self, split: str) -> float | None:
        """The top-1 error (percent) at the last iteration, None if that set was not measured."""
        found = self.result["last"].get(split)
        return None if found is None else float(found["top1_err"])

    def evaluation(self, protocol: str, part: str) -> Evaluation | None:
        """The evaluation of a set under a test protocol, None if there is none that counts: of this run's
        last iteration, on the data that it names, and with the BN statistics of its recipe.
        """
        for found in self._own_evaluations(protocol):
            if part in found.errors and found.data.same_set(part, self.env["data"]):
                return found
        return None

    def _own_evaluations(self, protocol: str) -> list[Evaluation]:
        """Those of the trained net under a test protocol, with the BN statistics of its recipe."""
        recipe = self.spec["recipe"]
        wanted = protocol, recipe.get("bn_stats", "running"), self.digest, recipe["iterations"]
        found = self.evaluations if self.finished else ()
        return [one for one in found if (one.protocol, one.bn_stats, one.digest, one.iteration) == wanted]

    def evaluated(self, protocol: str, metric: str, part: str) -> float | None:
        """The `top1_err` or `top5_err` (percent) of a set under a test protocol, if it was measured."""
        found = self.evaluation(protocol, part)
        return None if found is None else found.errors[part][metric]

    @property
    def own_test_is_whole(self) -> bool:
        """Whether the test set that it was measured on while training is the whole one."""
        images = self.env["data"]["images"].get("test")
        return images is not None and (self.spec["dataset"] != "cifar10" or images == CIFAR10_TEST)

    @property
    def test_afterwards(self) -> Evaluation | None:
        """What `eval` measured on CIFAR-10's whole test set, of a net that was trained on the same images."""
        for found in self._own_evaluations(str(self.spec["recipe"].get("test_view", "single"))):
            same = found.data.checksums.get("train") == self.env["data"]["sha256"]["train"]
            if same and "test" in found.errors and found.data.images["test"] == CIFAR10_TEST:
                return found
        return None

    def error(self, part: str) -> float | None:
        """The top-1 error (percent) at the last iteration on a set; of the test set only that of a finished
        run on the whole of it: its own, or what was measured afterwards.
        """
        if part != "test" or (self.finished and self.own_test_is_whole):
            return self.last(part)
        found = self.test_afterwards
        return None if found is None else found.errors["test"]["top1_err"]

    @property
    def best(self) -> float | None:
        """The lowest sampled top-1 error on the headline set."""
        best = self.result["best"]
        return None if best is None else float(best["top1_err"])

    @cached_property
    def curve(self) -> Curve:
        """The columns of metrics.csv by name (RecordError if it is broken)."""
        return reading.read_curve(self.folder / reading.METRICS, self.result["metrics"])

    def top1_errors(self, split: str) -> dict[int, float]:
        """The sampled top-1 errors of a set by iteration, in percent."""
        columns = (self.curve[name] for name in ("iteration", "split", "top1_err"))
        return {at: error for at, part, error in zip(*columns, strict=True) if part == split}


def read_run(folder: Path) -> Run:
    """The record in one run folder (RecordError on the file that is missing or broken), with evaluations and
    responses; what of these is broken is in `broken`.
    """
    head, env, result = (read_json(folder / name) for name in (reading.SPEC, reading.ENV, reading.RESULT))
    with naming(folder / reading.SPEC):
        spec = head["spec"]
        require(head["digest"] == digest_of(spec), "its digest does not match its content")
        run = Run(folder, str(head["name"]), int(head["seed"]), spec, env, result)
    with naming(folder / reading.RESULT):
        stated = result["digest"], result["seed"]
        require(stated == (run.digest, run.seed), "it is the result of another run")
    _ = run.curve
    evaluations, broken = read_evaluations(folder / reading.EVALS, reading.OF_ONE)
    responses = None
    try:
        responses = reading.read_responses(run)
    except RecordError as error:
        broken.append(str(error))
    return replace(run, evaluations=tuple(evaluations), responses=responses, broken=tuple(broken))


def read_evaluations(folder: Path, needs: tuple[str, ...]) -> tuple[list[Evaluation], list[str]]:
    """What the JSON files of a folder hold, and a sentence on each that is broken or lacks what it needs."""
    found: list[Evaluation] = []
    broken: list[str] = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            with naming(path):
                found.append(reading.evaluation_from(read_json(path), *needs))
        except RecordError as error:
            broken.append(str(error))
    return found, broken
