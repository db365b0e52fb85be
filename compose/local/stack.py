"""Postgres, Kafka and a Schema Registry together, as the demo, the tests and `viewkeeper-local` use them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from compose.local.kafka import KafkaBroker, launched
from compose.local.postgres import PostgresServer
from compose.local.postgres import postgres as run_postgres
from compose.local.registry import SchemaRegistry
from compose.local.registry import launched as registry_launched


@dataclass(frozen=True)
class Stack:
    """The servers that run; None for one that was not wanted."""

    postgres: PostgresServer | None
    kafka: KafkaBroker | None
    registry: SchemaRegistry | None = None

    @property
    def postgres_url(self) -> str | None:
        """URL of the server's database `postgres`, over TCP."""
        return self.postgres.url() if self.postgres else None

    @property
    def kafka_bootstrap_servers(self) -> str | None:
        """What Kafka clients connect to, `host:port`."""
        return self.kafka.bootstrap_servers if self.kafka else None

    @property
    def schema_registry_url(self) -> str | None:
        """Where the registry answers."""
        return self.registry.url if self.registry else None

    def settings(self) -> dict[str, str]:
        """Give the addresses as the daemons' settings; source and view are one database until told otherwise."""
        addresses = {
            "VIEWKEEPER_SOURCE_URL": self.postgres_url,
            "VIEWKEEPER_VIEW_URL": self.postgres_url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": self.kafka_bootstrap_servers,
            "VIEWKEEPER_SCHEMA_REGISTRY_URL": self.schema_registry_url,
        }
        return {name: address for name, address in addresses.items() if address}


@contextmanager
def stack(data_dir: Path, *, postgres: bool = True, kafka: bool = True, registry: bool = False) -> Iterator[Stack]:
    """Run the wanted servers on sub-folders of `data_dir`; ready when it yields, stopped after.

    Raises what `postgres`, `kafka` and `registry` raise; whatever runs by then is stopped first.
    """
    with ExitStack() as running:
        # What runs on Java takes longest, so it is launched first and waited for last.
        broker = running.enter_context(launched(data_dir / "kafka")) if kafka else None
        schemas = running.enter_context(registry_launched(data_dir / "registry")) if registry else None
        server = running.enter_context(run_postgres(data_dir / "postgres")) if postgres else None
        yield Stack(
            postgres=server,
            kafka=broker.wait_until_ready() if broker else None,
            registry=schemas.wait_until_ready() if schemas else None,
        )
