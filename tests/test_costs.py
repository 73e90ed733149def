"""What a plan will take, from records that this machine wrote or a moment's measurement."""

import pytest

from resrepro.launch import costs
from resrepro.launch.costs import disk_mib, measure_missing, seconds_of, seen_in, wall_seconds
from resrepro.launch.estimates import Estimate
from resrepro.records.collection import collect
from resrepro.spec import catalogue


def spec(name, **settings):
    return catalogue.derive(catalogue.find(name), None, **settings)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(costs, "cpu_model", lambda: "a made-up CPU")  # that of the records


def test_a_record_of_this_machine_tells_the_time_of_its_own_net(make_run, tmp_path, here):
    make_run(tmp_path, "cifar10-resnet20", curve=[(1000, 50.0, 50.0)])  # half a second for an iteration
    seen = seen_in(collect([tmp_path]).runs, "auto")
    assert seconds_of(spec("cifar10-resnet20"), 0, seen) == pytest.approx(32_000)
    assert seconds_of(spec("cifar10-resnet20"), 60_000, seen) == pytest.approx(2_000)
    # multiply-adds of the sheet on the paper's protocol: 125.5 and 40.6 million
    assert seconds_of(spec("cifar10-resnet56"), 0, seen) == pytest.approx(32_000 * 125.5 / 40.6, rel=0.01)


def test_records_of_other_machines_devices_and_recipes_tell_nothing(make_run, tmp_path, here, monkeypatch):
    make_run(tmp_path, "cifar10-resnet20")
    make_run(tmp_path, "cifar10-resnet8", iterations=100)  # of no depth of the paper
    runs = collect([tmp_path]).runs
    seen = seen_in(runs, "cpu")
    assert len(seen) == 1
    for other in (
        spec("cifar10-resnet20", batch_size=64), spec("cifar10-resnet20", precision="bf16"),
        spec("digits-resnet20"), spec("imagenet-resnet18"),
    ):  # fmt: skip
        assert seconds_of(other, 0, seen) is None
    assert seen_in(runs, "cuda") == []
    monkeypatch.setattr(costs, "cpu_model", lambda: "another CPU")
    assert seen_in(runs, "auto") == []


def test_what_was_never_seen_is_measured_once_of_each_kind_with_its_smallest_net(monkeypatch):
    asked = []

    def estimate(name, **means):
        asked.append((name, dict(means["settings"]), means["threads"]))
        return Estimate(name, 8, 4.0, 500.0, None, 1.0, True)

    monkeypatch.setattr(costs, "estimate", estimate)
    specs = [spec(f"digits-{net}", iterations=8) for net in ("plain56", "plain20", "resnet110")]
    specs.append(spec("folder-resnet18", iterations=8))
    found = measure_missing(specs, [], threads=1)
    assert asked == [("digits-plain20", {"iterations": 8}, 1), ("folder-resnet18", {"iterations": 8}, 1)]
    assert seconds_of(specs[1], 0, found) == pytest.approx(4.0)
    assert seconds_of(specs[0], 4, found) == pytest.approx(2.0 * 125.5 / 40.6, rel=0.01)
    assert measure_missing(specs, found, threads=1) == []


def test_the_time_of_several_at_once_is_shared_but_no_shorter_than_the_longest():
    assert wall_seconds([60, 60, 60, 60], 2) == 120
    assert wall_seconds([10, 100], 2) == 100
    assert wall_seconds([], 2) == 0


def test_the_disk_is_that_of_two_checkpoints_with_momentum():
    # 1.7 million parameters (Table 6) of 4 bytes with as many momenta, twice
    assert disk_mib(spec("cifar10-resnet110")) == pytest.approx(1.73e6 * 16 / 2**20, rel=0.02)
    assert disk_mib(spec("folder-resnet34-b")) == disk_mib(spec("imagenet-resnet34-b"))
