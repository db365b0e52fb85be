"""The broker and the Schema Registry of all tests: one of each a run, however many processes share the work.

A pytest plugin. A JVM takes more to start and to get warm than the tests have it do: with pytest-xdist the process
that hands out the tests starts both, and its workers are told where they are. Tests keep out of each other's way by
the prefix of their topics and subjects; one that harms a server starts its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from xdist.workermanage import WorkerController  # type: ignore[import-untyped] # has no stubs

from compose.local.kafka import KafkaBroker
from compose.local.kafka import kafka as run_kafka
from compose.local.registry import SchemaRegistry
from compose.local.registry import launched as launch_registry
from compose.local.registry import registry as run_registry
from tests.waiting import wait_until

READY_SECONDS = 240.0

Server = tuple[int, int, str]
"""Port, process and folder of one, as a worker is told it."""

_stack = pytest.StashKey[ExitStack]()
_servers = pytest.StashKey[dict[str, Server]]()


def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker where the servers are, the first one once they are started."""
    stash = node.config.stash
    if _servers not in stash:
        stash[_stack] = ExitStack()
        stash[_servers] = _started(stash[_stack])
    node.workerinput.update(stash[_servers])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started for the workers."""
    if _stack in config.stash:
        config.stash[_stack].close()


def _started(stack: ExitStack) -> dict[str, Server]:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="viewkeeper-tests-")))
    # It gets ready while the workers look for their tests.
    registry = stack.enter_context(launch_registry(folder / "registry")).registry
    broker = stack.enter_context(run_kafka(folder / "kafka"))
    return {
        "kafka": (broker.port, broker.pid, str(broker.data_dir)),
        "schema_registry": (registry.port, registry.pid, str(registry.data_dir)),
    }


def _told(config: pytest.Config, name: str) -> tuple[int, int, Path] | None:
    told: Server | None = getattr(config, "workerinput", {}).get(name)
    return (told[0], told[1], Path(told[2])) if told else None


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One real Kafka broker for the whole run."""
    if told := _told(pytestconfig, "kafka"):
        yield KafkaBroker(*told)
        return
    with run_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def schema_registry(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchemaRegistry]:
    """One real Schema Registry for the whole run; subjects begin with their test's topic prefix."""
    if told := _told(pytestconfig, "schema_registry"):
        registry = SchemaRegistry(*told)
        wait_until(registry.answers, timeout_seconds=READY_SECONDS, what="the schema registry")
        yield registry
        return
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry
