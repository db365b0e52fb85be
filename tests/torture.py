"""Tests that find their own trouble at random: how long they run, and the seed that makes them do it again.

A pytest plugin. A test marked `torture` takes the fixture of that name, draws everything random from its `random` and
does `rounds` rounds. `make test` runs one round with a fixed seed, `make torture` many with a new one.
"""

import secrets
from argparse import ArgumentTypeError
from dataclasses import dataclass
from random import Random

import pytest

SHORT_ROUNDS = 1
SHORT_SEED = 1
NEW_SEED = "new"
NEW_SEED_BITS = 32


@dataclass(frozen=True)
class Torture:
    """What a torture test is given: the number of its rounds, at least one, and its own stream of random numbers."""

    rounds: int
    random: Random


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make torture` sets."""
    group = parser.getgroup("torture")
    group.addoption("--rounds", type=_rounds, default=SHORT_ROUNDS, help="rounds of each torture test (default: 1)")
    group.addoption(
        "--seed",
        type=_seed,
        default=SHORT_SEED,
        help=f"seed of the torture tests (default: {SHORT_SEED}), or `{NEW_SEED}` to draw one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker by which `make torture` selects."""
    config.addinivalue_line("markers", "torture: finds trouble at random; `make torture` runs it for long")


def pytest_report_header(config: pytest.Config) -> str:
    """Show the seed before anything runs."""
    return f"torture: rounds {config.getoption('--rounds')}, seed {config.getoption('--seed')}"


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> Torture:
    """Give a torture test its rounds and random numbers; these depend on the seed and the test's id alone."""
    rounds, seed = request.config.getoption("--rounds"), request.config.getoption("--seed")
    request.node.add_report_section("setup", "torture", f"once more: make torture ROUNDS={rounds} SEED={seed}")
    return Torture(rounds=rounds, random=Random(f"{seed} {request.node.nodeid}"))  # noqa: S311 - no secret


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise ArgumentTypeError("a torture test does at least one round")
    return rounds


def _seed(text: str) -> int:
    return secrets.randbits(NEW_SEED_BITS) if text == NEW_SEED else int(text)
