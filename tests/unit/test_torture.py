"""The seed and the rounds of torture tests: shown, accepted, and the same trouble for the same seed."""

import re

import pytest

TORTURED = """
import pytest

@pytest.mark.torture
@pytest.mark.parametrize("name", ["left", "right"])
def test_drawn(torture, name):
    print(f"{name}: rounds={torture.rounds} drawn={[torture.random.random() for _ in range(torture.rounds)]}")

def test_plain():
    print("plain")
"""


@pytest.fixture
def drawn(pytester: pytest.Pytester) -> "Run":
    pytester.makepyfile(TORTURED)
    return Run(pytester)


class Run:
    """Runs of pytest with the plugin alone, in a folder of their own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, *options: str) -> list[str]:
        """Run with these options and return the lines that say seed or numbers drawn."""
        done = self._pytester.runpytest_inprocess("-p", "tests.torture", "--strict-markers", "-s", *options)
        assert done.ret == 0
        return [found[0] for line in done.outlines if (found := re.search(r"(torture: |(left|right): ).*", line))]


def test_a_run_is_one_round_of_a_fixed_seed_unless_told_otherwise(drawn: Run) -> None:
    header, left, right = drawn()
    assert header == "torture: rounds 1, seed 1"
    assert left.startswith("left: rounds=1 drawn=[0.")
    assert drawn() == [header, left, right]
    assert left.partition("drawn=")[2] != right.partition("drawn=")[2]


def test_a_seed_draws_the_same_again_and_another_one_draws_otherwise(drawn: Run) -> None:
    header, *lines = drawn("--rounds=3", "--seed=42")
    assert header == "torture: rounds 3, seed 42"
    assert all("rounds=3" in line for line in lines)
    assert drawn("--rounds=3", "--seed=42") == [header, *lines]
    assert drawn("--rounds=3", "--seed=43")[1:] != lines


def test_what_a_test_draws_depends_on_no_other_test(drawn: Run) -> None:
    _, _, right = drawn()
    assert drawn("-k", "right")[1:] == [right]


def test_a_new_seed_is_shown_and_draws_the_same_when_it_is_given(drawn: Run) -> None:
    header, *lines = drawn("--seed=new")
    seed = header.rpartition(" ")[2]
    assert drawn("--seed=new")[0] != header
    assert drawn(f"--seed={seed}") == [header, *lines]


def test_the_marker_selects(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TORTURED)
    done = pytester.runpytest_inprocess("-p", "tests.torture", "--strict-markers", "-m", "torture")
    done.assert_outcomes(passed=2, deselected=1)


def test_a_failure_says_how_to_have_it_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fails(torture):\n    assert torture is None")
    failed = pytester.runpytest_inprocess("-p", "tests.torture", "--rounds=2", "--seed=7", "-q")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["once more: make torture ROUNDS=2 SEED=7"])


def test_no_rounds_are_refused(pytester: pytest.Pytester) -> None:
    refused = pytester.runpytest_inprocess("-p", "tests.torture", "--rounds=0")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*a torture test does at least one round*"])
