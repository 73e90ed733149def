"""The test of `--fast` against the default: its interval, its verdict, and the error that it must find."""

import pytest
from conftest import write_run
from faithful import Case, Verdict, errors_of, judge
from scipy import stats

from resrepro.records.collection import collect


def test_the_interval_is_that_of_the_paired_t_test():
    default = {0: 10.0, 1: 12.0, 2: 11.0, 3: 15.0, 7: 1.0}
    fast = {0: 10.5, 1: 11.0, 2: 11.5, 3: 15.5, 9: 2.0}
    verdict = judge(default, fast)
    told = stats.ttest_rel([fast[seed] for seed in range(4)], [default[seed] for seed in range(4)])
    interval = told.confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high), abs=2e-3)
    assert verdict.pairs == 4
    assert verdict.deviation == pytest.approx(2.1602, abs=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "held"),
    [(-1, 1, True), (-0.2, 0.9, True), (-0.2, 1.1, False), (-1.1, 0, False), (2, 3, False)],
)
def test_the_whole_interval_must_lie_within_one_deviation(low, high, held):
    assert Verdict((low + high) / 2, low, high, 1, 5).held is held


def test_only_finished_runs_of_the_mode_and_length_count(tmp_path):
    case = Case("digits-plain20", 2, ("--iterations", "240"))
    for seed, mode in ((0, "default"), (1, "fast")):
        write_run(tmp_path, "digits-plain20", seed=seed, mode=mode)
    runs = list(collect([tmp_path]).runs)
    assert len(runs) == 2
    assert list(errors_of(runs, case, "default", "train")) == [0]
    assert list(errors_of(runs, case, "fast", "train")) == [1]
    assert errors_of(runs, Case("digits-plain20", 2, ("--iterations", "120")), "fast", "train") == {}
