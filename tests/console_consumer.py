"""Java's console consumer, `kafka-console-consumer.sh` without the script: how Kafka's own tools read a topic."""

import subprocess
from dataclasses import dataclass

from compose.local import jvm
from compose.local.jars import JavaProgram
from compose.local.kafka import KAFKA_VERSION, SLF4J_SIMPLE_VERSION, JavaCommand

PROGRAM = JavaProgram(
    name="Kafka-tools",
    version=KAFKA_VERSION,
    coordinates=f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}+org.slf4j:slf4j-simple:{SLF4J_SIMPLE_VERSION}",
    # Beside those that it shares with the broker.
    megabytes=12,
    otherwise="test without it: ARGS='--deselect tests/integration/test_capture_console.py'",
)
HEAP_MB = 128
NO_VALUE = "(none)"
"""How a tombstone's value is printed: as something that is no JSON."""

READ_SECONDS = 60.0


@dataclass(frozen=True, order=True)
class Printed:
    """A record as it is printed on a line: its headers in their order, key and value, empty for a tombstone."""

    headers: tuple[str, ...]
    key: str
    value: str


def print_topic(bootstrap_servers: str, topic: str, *, records: int) -> list[Printed]:
    """Have so many committed records of a topic printed from its beginning, each partition's in their order.

    Fails with its log if it ends otherwise. Tabs and line ends part what is printed: a column of type `json` may have
    them, all other JSON escapes them.
    """
    formatted = {"print.headers": "true", "print.key": "true", "null.literal": NO_VALUE}
    command = JavaCommand(jvm.java(), PROGRAM.jars(), HEAP_MB).words(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--bootstrap-server", bootstrap_servers, "--topic", topic, "--from-beginning"),
        *("--isolation-level", "read_committed", "--max-messages", str(records)),
        *(word for name, value in formatted.items() for word in ("--formatter-property", f"{name}={value}")),
    )
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READ_SECONDS, check=False)
    # Not splitlines: JSON leaves some of what that takes for a line's end as it is.
    lines = done.stdout.decode().removesuffix("\n").split("\n")
    assert (done.returncode, len(lines)) == (0, records), done.stderr.decode()
    return list(map(_printed, lines))


def _printed(line: str) -> Printed:
    headers, key, value = line.split("\t")
    return Printed(tuple(headers.split(",")), key, "" if value == NO_VALUE else value)
