"""`resrepro train` and `resrepro publish`."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from resrepro import cli
from resrepro.cli import argument, option, recipe_option
from resrepro.cli.view import raise_failures, tell
from resrepro.errors import DataError, Diverged, ResreproError, UsageError
from resrepro.launch import Plan, Step, Wanted, option_words, pool_for, step_of, train_words
from resrepro.spec import Spec, catalogue, check_shortcut, in_folder
from resrepro.spec.catalogue import derive, experiment_for, find
from resrepro.spec.recipe import FAMILIES, Value
from resrepro.training import is_first, world_size

STRIDE = "A bottleneck's stride on its 3x3 instead of its first 1x1."
ENGINE = "How updates are computed: lanes, graph (NVIDIA GPUs), kernels (CPUs with a C compiler), eager."
EVERY = "Iterations or minutes between checkpoints, or both. (default: under 1 % of time)"
NAMES = "Names as in `resrepro list`."
DATASET = "cifar10, digits, imagenet, or folder: photographs of your own."
SIDE = "Photographs: side of a crop instead of 224; scales in proportion."
GROUP = "Images that share BN statistics; 0: the whole batch."
STATISTICS = "Photographs, BN at test: running, or precise (plain averages over batches)."
PASS = "Images per pass; gradients of several passes are accumulated. (default: all)"
LOCK = "Take over a run whose process on another machine has ended."

FreshOption = Annotated[bool, option("Set an existing run aside (it is kept) and start anew.", "--fresh")]


@cli.app.command(rich_help_panel="Run")
def train(
    experiments: Annotated[list[str] | None, argument(NAMES, "EXPERIMENT...")] = None,
    depth: cli.DepthOption = None,
    plain: Annotated[bool, option("Without shortcuts.", "--plain")] = False,
    shortcut: Annotated[str | None, option("Shortcut option A, B or C. (default: the paper's)")] = None,
    dataset: Annotated[str, typer.Option(help=DATASET)] = "cifar10",
    seed: Annotated[int | None, option("Seed. (default: 0)")] = None,
    seeds: Annotated[str | None, option("So many seeds, or these, one run each.", metavar="N|0-4")] = None,
    iterations: cli.IterationsOption = None,
    batch_size: Annotated[int | None, cli.whole_option("Images per batch.")] = None,
    split: cli.SplitOption = None,
    image_size: Annotated[int | None, recipe_option(SIDE)] = None,
    bn_group: Annotated[int | None, recipe_option(GROUP)] = None,
    bn_stats: Annotated[str | None, recipe_option(STATISTICS)] = None,
    stride_3x3: Annotated[bool, recipe_option(STRIDE, "--stride-3x3")] = False,
    precision: Annotated[str | None, recipe_option("float32, tf32, bf16 or fp16.")] = None,
    eval_every: Annotated[int | None, cli.whole_option("Iterations between samples; 0: an epoch.")] = None,
    settings: cli.SettingsOption = None,
    data: cli.DataOption = None,
    device: cli.DeviceOption = "auto",
    threads: cli.ThreadsOption = None,
    fast: cli.FastOption = False,
    engine: Annotated[
        str, typer.Option(metavar="auto|eager|kernels|graph|lanes", rich_help_panel="Speed", help=ENGINE)
    ] = "auto",
    jobs: cli.JobsOption = None,
    micro_batch: Annotated[int | None, option(PASS)] = None,
    workers: cli.WorkersOption = None,
    max_bad_images: cli.MaxBadOption = None,
    launcher: cli.LauncherOption = "local",
    slurm: cli.SlurmOption = None,
    runs: cli.RunsOption = Path("runs"),
    checkpoint_every: Annotated[str | None, option(EVERY, metavar="500|10m")] = None,
    break_lock: Annotated[bool, option(LOCK, "--break-lock")] = False,
    fresh: FreshOption = False,
    dry_run: Annotated[bool, option("Only tell what time and disk the runs will take.", "--dry-run")] = False,
    quiet: cli.QuietOption = False,
    as_json: cli.JsonOption = False,
) -> None:
    """Train nets as the paper did; the same command continues an interrupted run.

    Example: resrepro train --depth 56 --plain
    """
    changed = cli.changed_settings(
        settings, fast, iterations=iterations, batch_size=batch_size, split=split, image_size=image_size,
        bn_group=bn_group, bn_stats=bn_stats, stride_3x3=stride_3x3 or None, precision=precision,
        eval_every=eval_every,
    )  # fmt: skip
    slurm_options = cli.parse_slurm(slurm, launcher)
    if fast and (dry_run or launcher == "slurm"):
        changed["precision"], fast = cli.precision_of_fast(device, launcher), False
    specs = _specs(experiments or [], dataset, cli.parse_depths(depth), plain, shortcut, changed)
    if seed is not None and seeds is not None:
        raise UsageError("--seed takes one seed and --seeds several, such as 0-4: give one of the two.")
    numbers = [seed or 0] if seeds is None else cli.parse_seeds(seeds)
    wanted = [(spec, number) for spec in specs for number in numbers]
    options: dict[str, Any] = {
        "shortcut": shortcut, "data": data, "runs": runs, "device": device, "threads": threads, "fast": fast,
        "micro_batch": micro_batch, "checkpoint_every": checkpoint_every, "break_lock": break_lock,
        "fresh": fresh, "engine": engine, "workers": workers, "max_bad_images": max_bad_images,
    }  # fmt: skip
    words = option_words(changed, **options)
    if dry_run:
        _forecast(wanted, options)
    elif launcher == "slurm":
        from resrepro.launch.local import prepare_images

        prepare_images(specs, data)  # downloaded once, not by every job
        queued = [(spec.name, number, train_words(spec, number, words)) for spec, number in wanted]
        submit_runs(queued, runs, slurm_options, threads)
    elif len(wanted) > 1 and world_size() == 1:
        _train_several(wanted, jobs, options, words, changed)
    else:
        _train_here(wanted, options | changed)


def _specs(
    names: Sequence[str], dataset: str, depths: Sequence[int], plain: bool, shortcut: str | None,
    changed: Mapping[str, Value],
) -> list[Spec]:  # fmt: skip
    """What was asked for, by names of experiments or depths of nets, each once."""
    bare = all(catalogue.full_name(name) != catalogue.full_name(name, "") for name in names)
    if names and (plain or (dataset != "cifar10" and not bare)):
        raise UsageError(
            "an experiment's name already says dataset and kind: leave --plain and --dataset out."
        )
    chosen = [find(catalogue.full_name(name, dataset)) for name in names]
    chosen += [experiment_for(dataset, depth, plain, shortcut) for depth in depths]
    if not chosen:
        depth = 18 if FAMILIES.get(dataset) == "imagenet" else 20
        raise UsageError(
            f"which net? Give --depth (say --depth {depth}), or a name that `resrepro list` shows."
        )
    check_shortcut(plain, shortcut)
    return list(dict.fromkeys(derive(each, shortcut, **changed) for each in chosen))


def _train_here(wanted: Wanted, options: dict[str, Any]) -> None:
    """Train in this process: one run, or several in turn under torchrun; one that fails stops no other."""
    from resrepro.cli.view import EventView, RunsView
    from resrepro.data.loader import Loading
    from resrepro.launch.local import EVENTS, Job, Outcome
    from resrepro.training.engine import choose_device, keep_memory
    from resrepro.training.session import train as train_one

    if choose_device(options["device"]).type == "cpu":
        keep_memory()
    options["loading"] = Loading(options.pop("workers"), options.pop("max_bad_images") or 0)
    each = {Job(spec.experiment, seed, ()): spec for spec, seed in wanted}
    listener, failed = os.environ.get(EVENTS), dict[str, str]()
    shows = is_first() and listener is None
    view = RunsView(list(each), Console(highlight=False, quiet=not shows))
    with view.live:
        for job, spec in each.items():
            watcher = EventView(partial(view.hear, job)) if shows else EventView(parent=int(listener or 0))
            try:
                folder = train_one(spec.experiment, job.seed, watcher=watcher, **options)
            except ResreproError as error:
                # All processes of a run have met the first two, and what `parallel.on_first` has told.
                met_by_all = isinstance(error, UsageError | Diverged) or "told" in vars(error)
                if len(each) == 1 or not met_by_all:
                    raise
                failed[str(job)] = str(error)
                view.end(job, Outcome(error.exit_code, str(error)))
                continue
            if is_first():
                watcher.tell("finish", folder=str(folder))
                view.end(job, Outcome(0))
    if failed and not is_first():
        raise typer.Exit(1)
    raise_failures(failed, f" of {len(each)} runs")


def _train_several(
    wanted: Wanted, jobs: int | None, options: dict[str, Any], words: Sequence[str],
    changed: Mapping[str, Value],
) -> None:  # fmt: skip
    """Train several runs, as many at once as there is room for, by commands of their own."""
    from resrepro.cli.view import RunsView, train_all
    from resrepro.launch.local import EVENTS, prepare_images

    if EVENTS in os.environ:  # this is such a command
        _train_side_by_side(wanted, options | dict(changed), int(os.environ[EVENTS]))
        return
    specs, how = [spec for spec, _ in wanted], ("device", "engine", "micro_batch", "fast")
    pool = pool_for(wanted, words, jobs, *(options[name] for name in how))
    alone = all(spec.dataset == "cifar10" for spec in specs)
    with nullcontext() if alone else suppress(DataError):  # of each run, where others need no CIFAR-10
        prepare_images(specs, options["data"])
    way_on = " without --fresh" if options["fresh"] else ""
    failed = train_all(pool, RunsView(pool.jobs), way_on)
    if len(failed) == len(wanted) and {outcome.code for outcome in failed.values()} == {UsageError.exit_code}:
        raise UsageError(failed[pool.jobs[0]].sentence)
    raise_failures({str(job): end.sentence for job, end in failed.items()}, f" of {len(wanted)} runs")


def _train_side_by_side(wanted: Wanted, options: dict[str, Any], parent: int) -> None:
    """Train runs that share this process, and tell the process `parent` of each."""
    from resrepro.cli.view import EventView
    from resrepro.data.loader import Loading
    from resrepro.launch.local import Job
    from resrepro.training.engine import threads_used
    from resrepro.training.session import Session, train_side_by_side

    threads = options.pop("threads")
    options["loading"] = Loading(options.pop("workers"), options.pop("max_bad_images") or 0)
    views = {}
    for spec, seed in wanted:
        view = EventView(parent=parent, run=str(Job(spec.experiment, seed, ())))
        views[Session(spec.experiment, seed, watcher=view, **options)] = view
    with threads_used(threads):
        for session, error in train_side_by_side(list(views)):
            if error:
                views[session].tell("fail", code=error.exit_code, sentence=str(error))
            else:
                views[session].tell("finish", folder=str(session.folder))


def submit_runs(
    wanted: Sequence[tuple[Any, ...]], runs: Path, slurm: Mapping[str, str], threads: int | None
) -> None:
    """Hand runs, each as the fields of a QueuedRun, to the cluster's queue; prints the job of each."""
    from resrepro.launch.slurm import QueuedRun, submit

    for queued, number, before in submit([QueuedRun(*each) for each in wanted], runs, slurm, threads):
        there = "" if before is None else "waiting" if before.state == "PENDING" else "running"
        print(f"{queued}: job {number}" + (f" ({there} already)" if there else ""))
        tell(run=queued.run, seed=queued.seed, job=number, there=there)
    print(f"Next: {in_folder('resrepro status', runs)}")


def _forecast(wanted: Wanted, options: Mapping[str, Any]) -> None:
    """Show what the runs will take, less what is done already; nothing is written."""
    from resrepro.cli.status import show_plan

    steps = [step_of(options["runs"], spec, seed) for spec, seed in wanted]
    if options["fresh"]:
        steps = [Step(step.spec, step.seed, step.folder, "start") for step in steps]
    for step in steps:
        tell(record=str(step.folder), seed=step.seed, state=step.state, iteration=step.done)
    show_plan(Plan(options["runs"], tuple(steps)), options["device"], Console(highlight=False))


@cli.app.command(rich_help_panel="Run")
def publish(
    records: Annotated[list[Path], argument("Run folders, finished, or files of runs/ensembles.", "RUN...")],
    results: Annotated[Path, cli.folder_option(help="Where to.")] = Path("results"),
) -> None:
    """Copy finished records to a folder that one commits, of full-length runs with their weights."""
    from resrepro.evaluation.weights import write_weights
    from resrepro.records import collection, read_run

    runs = [read_run(record) for record in records if not record.is_file()]
    copies = [collection.publish(run, results) for run in runs]
    for run, copy in zip(runs, copies, strict=True):
        write_weights(run, copy)
    copies += [collection.publish_ensemble(record, results) for record in records if record.is_file()]
    for copy in copies:
        print(f"Published to {copy}")
