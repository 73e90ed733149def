"""Several processes compute what one does, hear of each other's troubles, and stop together."""

import os
import signal

import pytest
import torch
from ranks import in_ranks
from torch import distributed, nn
from torch.nn import functional as F

from resrepro import bench, evaluation, training
from resrepro.data import load_dataset
from resrepro.data.augment import Normalisation, on_device
from resrepro.data.feeds import memory_views
from resrepro.errors import Interrupted, PeerLost, RecordError, UsageError
from resrepro.evaluation import responses
from resrepro.nets import net_of
from resrepro.nets.layers import running_statistics
from resrepro.spec import catalogue
from resrepro.training import engine, parallel, session
from resrepro.training.measure import Errors, ErrorSums, Member, measure_errors
from resrepro.training.parallel import collected, exchanging, in_parallel, join, on_first, process_group

CPU = torch.device("cpu")

# --- which process this is, by the environment that torchrun sets ------------------------------------

TOLD = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node"}


def all_told():
    return (
        training.rank(), training.world_size(), training.local_rank(), training.local_world_size(),
        training.is_first(),
    )  # fmt: skip


def test_torchrun_says_which_process_of_the_run_and_of_the_machine_it_is(monkeypatch):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    assert all_told() == (5, 8, 1, 4, False)
    monkeypatch.setenv("RANK", "0")
    assert training.is_first()


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", " ".join(TOLD)])
def test_a_part_of_these_variables_which_others_set_too_means_nothing(missing, monkeypatch):
    for name, value in TOLD.items():
        if name not in missing.split():
            monkeypatch.setenv(name, value)
    assert all_told() == (0, 1, 0, 1, True)


# --- gradients --------------------------------------------------------------------------------------

BATCH, CLASSES = 12, 10
DIGITS = catalogue.derive(catalogue.find("digits-resnet8"))
PHOTOS = catalogue.derive(catalogue.find("folder-resnet18"), image_size=32)
BOTTLENECK = catalogue.derive(catalogue.find("folder-resnet50"), image_size=32)


def build(spec, group, batch=0):
    grouped = catalogue.derive(
        catalogue.find(spec.experiment), image_size=getattr(spec.recipe, "image_size", None),
        bn_group=group, batch_size=BATCH,
    )  # fmt: skip
    return net_of(grouped, CLASSES, torch.Generator().manual_seed(1), batch).train()


def batch_for(spec):
    side = getattr(spec.recipe, "image_size", 16)
    source = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, side, side, generator=source)
    return images, torch.randint(CLASSES, (BATCH,), generator=source)


def gradients_of(spec, group, processes, passes):
    """Gradients and running averages of one process's share of one update."""
    net = build(spec, group, BATCH // processes)
    join(CPU)
    model = in_parallel(net, CPU)
    rank = int(os.environ.get("RANK", "0"))
    images, labels = (part.chunk(processes)[rank].chunk(passes) for part in batch_for(spec))
    for number, (part, truth) in enumerate(zip(images, labels, strict=True), 1):
        with exchanging(model, number == passes):
            (F.cross_entropy(model(part), truth) / passes).backward()
    parallel.average_statistics(net)
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    return gradients, running_statistics(net)


def by_plain_pytorch(spec, group):
    """The same with PyTorch's own BN, group by group, gradients and averages then averaged by hand."""
    net = build(spec, 0)
    images, labels = batch_for(spec)
    start = [tensor.clone() for tensor in running_statistics(net)]
    sums = ([], [])
    parameters = list(net.parameters())
    for part, truth in zip(images.split(group), labels.split(group), strict=True):
        for buffer, value in zip(running_statistics(net), start, strict=True):
            buffer.copy_(value)
        found = torch.autograd.grad(F.cross_entropy(net(part), truth), parameters)
        for store, new in zip(sums, (found, running_statistics(net)), strict=True):
            store.append(torch.cat([tensor.flatten() for tensor in new]))
    return tuple([torch.stack(store).mean(0)] for store in sums)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("spec", "group", "processes", "passes"),
    [
        (DIGITS, 6, 2, 1),
        (DIGITS, 3, 2, 2),  # two processes, each its share in two passes of one group
        (DIGITS, 2, 1, 3),  # accumulation in one process, two groups in each pass
        (PHOTOS, 6, 2, 1),
        pytest.param(DIGITS, 2, 3, 2, marks=pytest.mark.slow),
        pytest.param(BOTTLENECK, 6, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_and_running_averages_are_those_of_plain_pytorch_group_by_group(
    spec, group, processes, passes
):
    if processes == 1:
        answers = [gradients_of(spec, group, 1, passes)]
    else:
        answers = in_ranks(processes, lambda rank: gradients_of(spec, group, processes, passes))
    wanted = [flat(part) for part in by_plain_pytorch(spec, group)]
    with_groups = [flat(part) for part in gradients_of(spec, group % BATCH, 1, 1)]
    scale = float(wanted[0].abs().max())
    for answer in [with_groups, *([flat(part) for part in each] for each in answers)]:
        torch.testing.assert_close(answer[0], wanted[0], rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(answer[1], wanted[1], rtol=1e-4, atol=1e-5)
    if group < BATCH:  # the groups matter: BN over the whole batch gives other gradients
        whole = flat(by_plain_pytorch(spec, BATCH)[0])
        assert float((whole - wanted[0]).abs().max()) > 0.02 * scale


def test_gradients_travel_once_per_update():
    def work(rank):
        join(CPU)
        model = in_parallel(nn.Linear(1, 1, bias=False), CPU)
        seen = []
        for last in (False, True):
            with exchanging(model, last):
                model(torch.full((1, 1), rank + 1.0)).sum().backward()
            seen.append(float(next(model.parameters()).grad.sum()))
        return seen

    # The first pass is each one's own; the second adds its own and exchanges the sum: (2 + 4) / 2.
    assert in_ranks(2, work) == [[1.0, 3.0], [2.0, 3.0]]


# --- sums, lists, errors ----------------------------------------------------------------------------


def test_sums_lists_and_averages_are_those_of_all_processes():
    def work(rank):
        join(CPU)
        sums = ErrorSums(CPU)
        logits = torch.eye(6)[: rank + 1] * 5
        sums.add(torch.tensor(float(rank)), logits, torch.zeros(rank + 1, dtype=torch.long))
        net = build(DIGITS, 0)
        for number, buffer in enumerate(running_statistics(net)):
            buffer.fill_(10.0 * number + rank)
        parallel.average_statistics(net)
        found = [set(buffer.tolist()) for buffer in running_statistics(net)]
        heard = parallel.agreed(signal.SIGTERM * (rank == 1), rank == 2)
        total = parallel.total(torch.tensor(rank + 1)).item()
        return collected(f"of {rank}"), total, heard, sums.read_all(), found

    answers = in_ranks(3, work)
    assert answers[0] == answers[1] == answers[2]
    names, added, heard, errors, found = answers[0]
    assert (names, added, heard) == (["of 0", "of 1", "of 2"], 6, [signal.SIGTERM, 1])
    # 1 + 2 + 3 images, of which the first of each process is right; losses 0, 1, 2 weighted 1, 2, 3
    assert errors == Errors(pytest.approx(8 / 6), pytest.approx(50.0), pytest.approx(0.0), 6)
    assert found == [{10.0 * number + 1} for number in range(len(found))]


def test_alone_nothing_is_sent_and_everything_is_ones_own():
    join(CPU)
    assert not distributed.is_initialized()
    assert (collected(7), on_first(lambda: 8), parallel.total(torch.tensor(9)).item()) == ([7], 8, 9)
    assert parallel.agreed(15, True) == [15, 1]
    net = build(DIGITS, 0)
    assert in_parallel(net, CPU) is net


def test_what_the_first_process_does_all_learn_and_its_errors_too():
    def work(rank):
        join(CPU)

        def trouble(error):
            raise error

        heard = [on_first(lambda: f"done by {rank}")]
        for error in (UsageError("no"), RecordError("full"), Interrupted("stopped", 15)):
            try:
                on_first(lambda error=error: trouble(error))
            except type(error) as caught:
                heard.append((type(caught), str(caught), caught.exit_code, caught.told))
        return [*heard, on_first(lambda: rank)]

    first, second = in_ranks(2, work)
    told = [(UsageError, "no", 2), (RecordError, "full", 1), (Interrupted, "stopped", 143)]
    assert first == ["done by 0", *((*each, False) for each in told), 0]
    assert second == ["done by 0", *((*each, True) for each in told), 0]


# --- lost processes ---------------------------------------------------------------------------------


def test_other_errors_of_pytorch_are_not_taken_for_a_lost_process(monkeypatch):
    as_one_of(2, monkeypatch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), parallel.told_as_lost():
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(torch.OutOfMemoryError), parallel.told_as_lost():
        raise torch.OutOfMemoryError("out of memory")
    for error in (
        RuntimeError("[gloo/tcp/pair.cc:547] Connection closed by peer [::1]:4711\nException raised from"),
        RuntimeError("NCCL communicator was aborted on rank 0"),
        distributed.DistStoreError("wait timeout after 10 ms"),
    ):
        with pytest.raises(PeerLost, match=r"the last checkpoint\.") as lost, parallel.told_as_lost():
            raise error
        assert "Exception raised" not in str(lost.value)


# --- evaluation -------------------------------------------------------------------------------------


def member(net):
    return Member(net, Normalisation(DIGITS.recipe, torch.full((3, 1, 1), 100.0)))


def measured_jointly(net, images):
    join(CPU)
    return measure_errors([member(net)], memory_views(*on_device(images, CPU), process_group()), False, CPU)


@pytest.mark.parametrize(("processes", "count"), [(3, 1), (2, 121)])  # also fewer than there are processes
def test_the_errors_of_several_processes_are_those_of_one(count, processes):
    images = load_dataset("digits").held_out["test"].part(0, count)
    net = build(DIGITS, 0)
    wanted = measure_errors([member(net)], memory_views(*on_device(images, CPU), process_group()), False, CPU)
    assert wanted.count == count
    for answer in in_ranks(processes, lambda rank: measured_jointly(net, images)):
        assert answer == Errors(*(pytest.approx(value, rel=1e-5) for value in vars(wanted).values()))


# --- how a batch is split ----------------------------------------------------------------------------

CIFAR = catalogue.find("cifar10-resnet20").spec().recipe
IMAGENET = catalogue.find("imagenet-resnet18").spec().recipe


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "split"),
    [(128, 1, None, (128, 128)), (128, 2, None, (64, 64)), (256, 8, 16, (32, 16)), (6, 3, 1, (2, 1))],
)
def test_every_process_and_every_pass_has_equally_many_images(batch, processes, micro, split):
    assert parallel.split_batch(batch, processes, micro) == parallel.BatchSplit(*split)


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "complaint"),
    [
        (65, 2, None, r"batch of 65 does not divide among 2 processes.*--batch-size"),
        (128, 1, 48, r"--micro-batch 48 does not divide the 128 images"),
        (128, 2, 128, r"--micro-batch 128 does not divide the 64 images"),
        (128, 2, 0, r"--micro-batch 0 does not divide"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch, processes, micro, complaint):
    with pytest.raises(UsageError, match=complaint):
        parallel.split_batch(batch, processes, micro)


@pytest.mark.parametrize(
    ("recipe", "processes", "micro", "group"),
    [
        (CIFAR, 1, None, 0),  # the whole batch, as ever
        (CIFAR, 2, None, 64),  # each process its own images
        (CIFAR, 4, None, 32),
        (CIFAR, 1, 32, 32),  # each pass its own
        (CIFAR, 2, 16, 16),
        *((IMAGENET, processes, None, 32) for processes in (1, 2, 4, 8)),  # as on the paper's eight GPUs
        (IMAGENET, 16, None, 16),  # a process has only 16
        (IMAGENET, 1, 64, 32),
        (IMAGENET, 1, 16, 16),
        (IMAGENET, 32, None, 8),
    ],
)
def test_bn_takes_the_groups_of_the_recipe_or_what_one_process_has_in_one_pass(
    recipe, processes, micro, group
):
    split = parallel.split_batch(recipe.batch_size, processes, micro)
    assert parallel.bn_group_for(recipe, split, given=False) == group


@pytest.mark.parametrize(
    ("processes", "micro", "group", "complaint"),
    [
        (4, None, 64, r"BN groups of 64 images do not divide the 32 that a process has in one pass"),
        (1, 32, 64, r"BN groups of 64 images do not divide the 32"),
        (1, 32, 0, r"whole batch needs the batch in one process and one pass"),
        (2, None, 0, r"whole batch needs the batch in one process and one pass"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(monkeypatch, processes, micro, group, complaint):
    as_one_of(processes, monkeypatch)
    with pytest.raises(UsageError, match=complaint):
        parallel.plan("cifar10-resnet20", None, micro, {"bn_group": group})


def test_a_group_that_was_asked_for_and_fits_is_kept_under_any_number_of_processes(monkeypatch):
    names = set()
    for processes in (1, 2, 4):
        as_one_of(processes, monkeypatch)
        names.add(parallel.plan("cifar10-resnet20", None, None, {"bn_group": 32})[0].name)
    assert names == {"cifar10-resnet20+bn_group=32"}


def test_two_processes_make_another_run_of_cifar_and_the_same_of_imagenet(monkeypatch):
    as_one_of(2, monkeypatch)
    cifar, split = parallel.plan("cifar10-resnet20", None, None, {})
    assert (cifar.name, split) == ("cifar10-resnet20+bn_group=64", parallel.BatchSplit(64, 64))
    assert [told for told in catalogue.departures(cifar) if told.startswith("bn_group 64 instead of 0")]
    assert parallel.plan("imagenet-resnet18", None, None, {})[0].name == "imagenet-resnet18"
    as_one_of(16, monkeypatch)
    imagenet, _ = parallel.plan("imagenet-resnet18", None, None, {})
    assert imagenet.name == "imagenet-resnet18+bn_group=16"
    assert [told for told in catalogue.departures(imagenet) if told.startswith("bn_group 16 instead of 32")]


def as_one_of(processes, monkeypatch, rank=0):
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "node0"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    "command",
    [
        lambda: session.train("digits-resnet8", device="cuda:1"),
        lambda: evaluation.evaluate("nowhere", device="cuda:1"),
        lambda: responses.measure_responses("nowhere", device="cuda:1"),
        lambda: bench.prepare(bench.Loop("eager", 8), "cuda:1", None),
    ],
    ids=["train", "evaluate", "responses", "bench"],
)
def test_a_named_gpu_is_made_the_default_one_before_anything_is_computed(command, monkeypatch):
    def made_default(device):
        raise UsageError(f"first {device}")

    for module in (engine, responses):
        monkeypatch.setattr(module, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", made_default)
    with pytest.raises(UsageError, match="first cuda:1"):
        command()
