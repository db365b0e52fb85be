"""The figures' arithmetic and the last line that other programs read."""

import json
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.errors import BenchError
from tests.bench.figures import NAMES, at_rate, last_line, report
from tests.bench.percentiles import nearest_rank, ratio_of_medians, summarise
from tests.bench.targets import Target, missed

FINITE = st.floats(min_value=0, max_value=1e6)


@given(st.lists(FINITE, min_size=1), st.floats(min_value=0.001, max_value=1))
def test_a_percentile_is_a_latency_that_was_seen_and_covers_its_share(seconds: list[float], quantile: float) -> None:
    ordered = sorted(seconds)
    value = nearest_rank(ordered, quantile)

    assert value in ordered
    assert sum(latency <= value for latency in ordered) >= quantile * len(ordered)
    assert sum(latency < value for latency in ordered) < quantile * len(ordered)


def test_percentiles_of_a_thousand_latencies() -> None:
    summary = summarise(number / 1000 for number in range(1000, 0, -1))

    assert (summary.count, summary.p50, summary.p95, summary.p99, summary.p999, summary.max) == (
        1000,
        0.5,
        0.95,
        0.99,
        0.999,
        1.0,
    )
    assert abs(summary.p95 - quantiles([number / 1000 for number in range(1, 1001)], n=20)[-1]) < 0.002


def test_no_latency_is_an_error() -> None:
    with pytest.raises(BenchError):
        summarise([])


def test_a_ratio_is_of_medians_so_that_one_bad_round_does_not_decide() -> None:
    assert ratio_of_medians([10, 20, 1_000], [5, 4, 0.1]) == 5


@pytest.mark.parametrize(("ours", "baseline"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_a_ratio_without_measurements_is_an_error(ours: list[float], baseline: list[float]) -> None:
    with pytest.raises(BenchError):
        ratio_of_medians(ours, baseline)


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(NAMES["freshness"], 0.123456789)

    report("freshness", figures)

    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == {"bench": "freshness", "figures": dict.fromkeys(figures, 0.123457)}
    assert any("p95_seconds_at_200" in line for line in printed[:-1])


def test_whole_numbers_stay_whole() -> None:
    assert last_line("projector", {"rows_that_differ": 0}) == '{"bench":"projector","figures":{"rows_that_differ":0}}'


def test_a_missing_figure_is_an_error() -> None:
    with pytest.raises(BenchError, match="p99_seconds"):
        report("freshness", {name: 1.0 for name in NAMES["freshness"] if name != "p99_seconds"})


def test_a_figure_that_is_no_number_is_an_error() -> None:
    with pytest.raises(BenchError, match="max_seconds"):
        report("freshness", dict.fromkeys(NAMES["freshness"], 1.0) | {"max_seconds": float("nan")})


def test_figures_are_named_for_their_rate() -> None:
    assert at_rate({"p95_seconds": 1.0}, 1_000) == {"p95_seconds": 1.0}
    assert at_rate({"p95_seconds": 1.0}, 200) == {"p95_seconds_at_200": 1.0}


def test_missed_targets_are_said_and_met_or_unmeasured_ones_are_not() -> None:
    targets = {"ratio": Target(at_least=25), "rss": Target(at_most=300), "growth": Target(at_least=1.5, at_most=2.5)}
    assert missed({"ratio": 25, "rss": 300, "growth": 2.0, "other": 1}, targets) == []
    assert missed({"ratio": 24.9, "rss": 301}, targets) == [
        "missed: ratio is 24.9, and is to be at least 25",
        "missed: rss is 301, and is to be at most 300",
    ]
    assert len(missed({"growth": 1.4}, targets)) == len(missed({"growth": 2.6}, targets)) == 1
