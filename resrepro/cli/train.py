"""`resrepro train` and `resrepro publish`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from resrepro.cli import (
    MOST_SEEDS,
    RECIPE,
    SPEED,
    DataOption,
    DeviceOption,
    FastOption,
    IterationsOption,
    JobsOption,
    LauncherOption,
    MaxBadOption,
    RunsOption,
    SettingsOption,
    SlurmOption,
    SplitOption,
    ThreadsOption,
    WorkersOption,
    app,
    changed_settings,
    option,
    parse_seeds,
    parse_slurm,
    precision_of_fast,
)
from resrepro.errors import DataError, Diverged, UsageError
from resrepro.spec import Spec, check_shortcut, in_folder
from resrepro.spec.recipe import FAMILIES
from resrepro.training import is_first, world_size

if TYPE_CHECKING:
    from resrepro.launch.local import Job
    from resrepro.launch.slurm import QueuedJob, QueuedRun


@app.command(rich_help_panel="Run")
def train(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT...", help="Names as in `resrepro list`.", show_default=False),
    ] = None,
    depth: Annotated[
        list[int] | None,
        option("Weighted layers: 6n+2, on photographs 18, 34, 50, 101, 152; may be repeated.", "--depth"),
    ] = None,
    plain: Annotated[bool, option("Without shortcuts.", "--plain")] = False,
    shortcut: Annotated[str | None, option("Shortcut option A, B or C. (default: the paper's)")] = None,
    dataset: Annotated[
        str, typer.Option(help="cifar10, digits, imagenet, or folder: photographs of your own.")
    ] = "cifar10",
    seed: Annotated[int | None, option("Seed. (default: 0)")] = None,
    seeds: Annotated[str | None, option("Several seeds, one run each.", metavar="0-4")] = None,
    iterations: IterationsOption = None,
    batch_size: Annotated[int | None, option("Images per batch.", panel=RECIPE)] = None,
    split: SplitOption = None,
    image_size: Annotated[
        int | None, option("Photographs: side of a crop instead of 224; scales in proportion.", panel=RECIPE)
    ] = None,
    bn_group: Annotated[
        int | None, option("Images that share BN statistics; 0: the whole batch.", panel=RECIPE)
    ] = None,
    bn_stats: Annotated[
        str | None,
        option("Photographs, BN at test: running, or precise (plain averages over batches).", panel=RECIPE),
    ] = None,
    stride_3x3: Annotated[
        bool,
        option("A bottleneck's stride on its 3x3 instead of its first 1x1.", "--stride-3x3", panel=RECIPE),
    ] = False,
    precision: Annotated[str | None, option("float32, tf32, bf16 or fp16.", panel=RECIPE)] = None,
    eval_every: Annotated[int | None, option("Iterations between samples.", panel=RECIPE)] = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fast: FastOption = False,
    compiling: Annotated[
        str,
        typer.Option(
            "--compile", metavar="auto|on|off", rich_help_panel=SPEED,
            help="Compile what a step computes: auto does so on a CPU with a C compiler, on also on a GPU.",
        ),
    ] = "auto",
    jobs: JobsOption = None,
    micro_batch: Annotated[
        int | None, option("Images per pass; gradients of several passes are accumulated. (default: all)")
    ] = None,
    workers: WorkersOption = None,
    max_bad_images: MaxBadOption = None,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    runs: RunsOption = Path("runs"),
    checkpoint_every: Annotated[
        str | None,
        option(
            "Iterations or minutes between checkpoints, or both. (default: under 1 % of time)",
            metavar="500|10m",
        ),
    ] = None,
    break_lock: Annotated[
        bool, option("Take over a run whose process on another machine has ended.", "--break-lock")
    ] = False,
    fresh: Annotated[
        bool, option("Set an existing run aside (it is kept) and start anew.", "--fresh")
    ] = False,
    dry_run: Annotated[bool, option("Only tell what time and disk the runs will take.", "--dry-run")] = False,
) -> None:  # fmt: skip
    """Train nets as the paper did; the same command continues an interrupted run.

    Example: resrepro train --depth 56 --plain
    """
    from resrepro.launch import option_words, train_words
    from resrepro.launch.local import EVENTS, Job, prepare_images
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
    slurm_options = parse_slurm(slurm, launcher)
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
        _forecast(wanted, jobs, options, words)
    elif launcher == "slurm":
        from resrepro.launch.slurm import QueuedRun, submit

        prepare_images(specs, data)  # downloaded once, not by every job
        queued = [QueuedRun(spec.name, number, train_words(spec, number, words)) for spec, number in wanted]
        tell_jobs(submit(queued, runs, slurm_options, threads), runs)
    elif len(wanted) > 1 and world_size() == 1:
        each = [Job(spec.experiment, number, train_words(spec, number, words)) for spec, number in wanted]
        _train_at_once(each, [spec for spec, _ in wanted], jobs, options)
    else:
        if (jobs or 1) > 1 and world_size() > 1:
            raise UsageError(f"--jobs {jobs}: under torchrun all processes share one run; leave --jobs out.")
        from resrepro.data.loader import Loading

        loading = Loading(workers, max_bad_images or 0)
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


def tell_jobs(submitted: "Sequence[tuple[QueuedRun, str, QueuedJob | None]]", runs: Path) -> None:
    """Print the job of each run, whether it was in the queue already, and how to look after them."""
    for queued, number, before in submitted:
        there = "" if before is None else "waiting" if before.state == "PENDING" else "running"
        typer.echo(f"{queued}: job {number}" + (f" ({there} already)" if there else ""))
    if submitted:
        typer.echo(f"Next: {in_folder('resrepro status', runs)}")


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
        return
    view = EventView(int(listener)) if listener else LiveView(None if is_first() else Console(quiet=True))
    failed: list[Diverged] = []
    for spec, seed in wanted:
        try:
            folder = train_one(spec.experiment, seed, watcher=view, **options)
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
    wanted: Sequence[tuple[Spec, int]], jobs: int | None, options: Mapping[str, Any], words: Sequence[str]
) -> None:
    """Show what the runs will take, less what is done already; nothing is written.

    Raises:
        UsageError: if a run could not be started, or under torchrun.
    """
    from resrepro.cli.status import show_plan
    from resrepro.launch import Plan, Step, step_of, train_words
    from resrepro.launch.local import choose_jobs

    if world_size() > 1:
        raise UsageError("--dry-run looks at one process: leave torchrun out.")
    if options["data"] is not None and not options["data"].is_dir():
        raise DataError(
            f"the data folder {options['data']} (--data) does not exist: name the one that holds the images."
        )
    steps = [step_of(options["runs"], spec, seed) for spec, seed in wanted]
    if options["fresh"]:
        steps = [Step(step.spec, step.seed, step.folder, "start") for step in steps]
    plan, device = Plan(options["runs"], tuple(steps)), options["device"]
    count = choose_jobs(jobs, [step.spec for step in plan.to_train], device, options["micro_batch"])
    counts = dict.fromkeys((step.family for step in steps), count)
    console = Console(highlight=False)
    show_plan(plan, counts, device, lambda step: train_words(step.spec, step.seed, words), console)


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
