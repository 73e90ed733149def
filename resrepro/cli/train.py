"""`resrepro train` and `resrepro publish`."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from resrepro.cli import app
from resrepro.cli.options import (
    MOST_SEEDS,
    BatchSizeOption,
    BnGroupOption,
    BnStatsOption,
    CompileOption,
    DataOption,
    DeviceOption,
    EvalEveryOption,
    FastOption,
    ImageSizeOption,
    IterationsOption,
    JobsOption,
    MaxBadOption,
    PrecisionOption,
    RunsOption,
    SettingsOption,
    SplitOption,
    Stride3x3Option,
    ThreadsOption,
    WorkersOption,
    changed_settings,
    loading_of,
    parse_seeds,
    precision_of_fast,
)
from resrepro.cli.status import LauncherOption, SlurmOption, parse_slurm
from resrepro.errors import DataError, Diverged, UsageError
from resrepro.processes import is_first, world_size
from resrepro.spec.experiment import Spec, check_shortcut
from resrepro.spec.recipe import FAMILIES, Value

if TYPE_CHECKING:
    from resrepro.launch.local import Job


@app.command(rich_help_panel="Run")
def train(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT...", help="Names as in `resrepro list`.", show_default=False),
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            "--depth", show_default=False,
            help="Weighted layers: 6n+2, on photographs 18, 34, 50, 101, 152; may be repeated.",
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without shortcuts.")] = False,
    shortcut: Annotated[
        str | None, typer.Option(help="Shortcut option A, B or C. (default: the paper's)", show_default=False)
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="cifar10, digits, imagenet, or folder: photographs of your own.")
    ] = "cifar10",
    seed: Annotated[int | None, typer.Option(help="Seed. (default: 0)", show_default=False)] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0-4", help="Several seeds, one run each.", show_default=False)
    ] = None,
    iterations: IterationsOption = None,
    batch_size: BatchSizeOption = None,
    split: SplitOption = None,
    image_size: ImageSizeOption = None,
    bn_group: BnGroupOption = None,
    bn_stats: BnStatsOption = None,
    stride_3x3: Stride3x3Option = False,
    precision: PrecisionOption = None,
    eval_every: EvalEveryOption = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fast: FastOption = False,
    compiling: CompileOption = "auto",
    jobs: JobsOption = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Images per pass; gradients of several passes are accumulated. (default: all)",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = None,
    max_bad_images: MaxBadOption = None,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    runs: RunsOption = Path("runs"),
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="500|10m",
            help="Iterations or minutes between checkpoints, or both. (default: under 1 % of time)",
            show_default=False,
        ),
    ] = None,
    break_lock: Annotated[
        bool, typer.Option("--break-lock", help="Take over a run whose process on another machine has ended.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an existing run aside (it is kept) and start anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what time and disk the runs will take.")
    ] = False,
) -> None:  # fmt: skip
    """Train nets as the paper did; the same command continues an interrupted run.

    Example: resrepro train --depth 56 --plain
    """
    from resrepro.launch import option_words, train_words
    from resrepro.launch.local import EVENTS, Job
    from resrepro.spec import catalogue

    chosen = [catalogue.find(name) for name in experiments or []]
    chosen += [catalogue.experiment_for(dataset, number, plain, shortcut) for number in depth or []]
    if not chosen:
        photos = FAMILIES.get(dataset) == "imagenet"
        raise UsageError(
            f"which net? Give --depth (say --depth {18 if photos else 20}), or a name that "
            "`resrepro list` shows."
        )
    if experiments and (plain or dataset != "cifar10"):
        raise UsageError(
            "an experiment's name already says dataset and kind: leave --plain and --dataset out."
        )
    check_shortcut(plain, shortcut)
    changed = changed_settings(
        settings, fast, iterations=iterations, batch_size=batch_size, split=split, image_size=image_size,
        bn_group=bn_group, bn_stats=bn_stats, stride_3x3=stride_3x3 or None, precision=precision,
        eval_every=eval_every,
    )  # fmt: skip
    slurm_options = parse_slurm(slurm or [], launcher)
    if fast and (dry_run or launcher == "slurm"):
        changed["precision"], fast = precision_of_fast(device, launcher), False
    # Refuse before the first run starts, not after.
    specs = list(dict.fromkeys(catalogue.derive(each, shortcut, **changed) for each in chosen))
    wanted = [(spec, number) for spec in specs for number in _seeds(seed, seeds)]
    options: dict[str, Any] = {
        "shortcut": shortcut, "data": data, "runs": runs, "device": device, "threads": threads, "fast": fast,
        "micro_batch": micro_batch, "checkpoint_every": checkpoint_every, "break_lock": break_lock,
        "fresh": fresh,
    }  # fmt: skip
    words = option_words(
        changed, **options, compile=compiling, workers=workers, max_bad_images=max_bad_images
    )
    listener = os.environ.get(EVENTS)
    if dry_run and listener is None:
        _forecast(wanted, jobs, changed, options, words)
    elif launcher == "slurm":
        from resrepro.cli.status import submit_runs

        submit_runs(wanted, words, slurm_options, threads, runs, data)
    elif len(wanted) > 1 and world_size() == 1:
        each = [Job(spec.experiment, number, train_words(spec, number, words)) for spec, number in wanted]
        _train_at_once(each, [spec for spec, _ in wanted], jobs, options)
    else:
        if (jobs or 1) > 1 and world_size() > 1:
            raise UsageError(f"--jobs {jobs}: under torchrun all processes share one run; leave --jobs out.")
        loading = loading_of(workers, max_bad_images)
        options |= {"compiling": compiling, "loading": loading, **changed}
        _train_here(wanted, options, listener, dry_run)


def _seeds(seed: int | None, seeds: str | None) -> list[int]:
    """The seeds that were asked for; 0 by default."""
    if seeds is None:
        return [seed or 0]
    if seed is not None:
        raise UsageError("--seed and --seeds exclude each other.")
    if seeds.strip().isdecimal():  # which `reproduce` takes for how many
        many = f"--seeds 0-{int(seeds) - 1}" if 1 < int(seeds) <= MOST_SEEDS else "--seeds 0-4"
        raise UsageError(f"--seeds {seeds}: say --seed {seeds} for that one, or {many} for several.")
    return parse_seeds(seeds)


def _train_here(
    wanted: Sequence[tuple[Spec, int]], options: dict[str, Any], listener: str | None, timed: bool
) -> None:
    """Train in this process: a run alone, or one after the other under torchrun; or only time its updates.

    A diverged run does not stop those after it.
    """
    from resrepro.cli.view import EventView, LiveView
    from resrepro.training.engine import keep_memory
    from resrepro.training.session import train as train_one

    keep_memory()
    if timed:
        from resrepro.training.timing import seconds_per_iteration

        seconds = seconds_per_iteration(wanted[0][0].experiment, options)
        EventView(int(listener or 0)).tell("speed", seconds=seconds)
        return
    view = EventView(int(listener)) if listener else LiveView(None if is_first() else Console(quiet=True))
    failed: list[Diverged] = []
    for spec, seed in wanted:
        try:
            folder = train_one(spec.experiment, seed, watcher=view, arguments=sys.argv[1:], **options)
        except Diverged as error:
            if len(wanted) == 1:
                raise
            failed.append(error)
            view.say(str(error))
        else:
            if is_first():
                view.finish(folder)
    if failed:
        raise Diverged(f"{len(failed)} of {len(wanted)} runs diverged; their records are kept.")


def _train_at_once(
    each: Sequence["Job"], specs: Sequence[Spec], jobs: int | None, options: Mapping[str, Any]
) -> None:
    """Train several runs, as many at once as there is room for, each by a command of its own."""
    from resrepro.cli.view import RunsView, raise_failures, train_all
    from resrepro.launch.local import RunPool, choose_jobs, prepare_images, threads_each

    count = choose_jobs(jobs, specs, options["device"], options["micro_batch"])
    prepare_images(specs, options["data"])
    view = RunsView(each)
    way_on = " without --fresh" if options["fresh"] else ""
    failed = train_all(RunPool(each, count, threads_each(count)), view, way_on)
    raise_failures(failed, len(each), view)


def _forecast(
    wanted: Sequence[tuple[Spec, int]],
    jobs: int | None,
    changed: dict[str, Value],
    options: Mapping[str, Any],
    words: Sequence[str],
) -> None:
    """Show what the runs will take, less what is done already; nothing is written.

    Raises:
        UsageError: if a run could not be started, or under torchrun.
    """
    from resrepro.cli.plan import show_plan, speeds_of
    from resrepro.launch import Plan, Step, step_of, train_words
    from resrepro.launch.local import choose_jobs

    if world_size() > 1:
        raise UsageError("--dry-run looks at one process: leave torchrun out.")
    if options["data"] is not None and not options["data"].is_dir():
        raise DataError(
            f"the data folder {options['data']} (--data) does not exist: name the one that holds the images."
        )
    runs: Path = options["runs"]
    steps = [step_of(runs, spec, seed) for spec, seed in wanted]
    if options["fresh"]:
        steps = [Step(step.spec, step.seed, step.folder, "start") for step in steps]
    plan = Plan(runs, tuple(steps))
    specs = [step.spec for step in plan.to_train]
    counts = dict.fromkeys(
        (step.family for step in steps),
        choose_jobs(jobs, specs, options["device"], options["micro_batch"]),
    )
    speeds = speeds_of(plan, options["device"], counts, lambda spec: train_words(spec, 0, words))
    show_plan(plan, speeds, counts, Console(highlight=False))


@app.command(rich_help_panel="Run")
def publish(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, finished, or files of runs/ensembles."),
    ],
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where to.")] = Path("results"),
) -> None:
    """Copy finished records to a folder that one commits, of full-length runs with their weights."""
    from resrepro.evaluation.weights import write_weights
    from resrepro.records import read_run
    from resrepro.records.collection import publish as publish_run
    from resrepro.records.collection import publish_ensemble

    runs = [read_run(record) for record in records if not record.is_file()]
    copies = [publish_run(run, results) for run in runs]
    for run, copy in zip(runs, copies, strict=True):
        write_weights(run, copy)
    copies += [publish_ensemble(record, results) for record in records if record.is_file()]
    for copy in copies:
        typer.echo(f"Published to {copy}")
