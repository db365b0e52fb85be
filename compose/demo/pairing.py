"""Which databases and which Kafka belong together: their positions say nothing about any others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka.admin import AdminClient

from compose.demo.servers import TOPIC_PREFIX, Servers
from runtime.errors import ConfigurationError
from runtime.kafka import REQUEST_SECONDS, admin, translated
from runtime.postgres import connect, describe
from runtime.postgres import translated as postgres_translated
from runtime.settings import KafkaSettings, read_settings

# The system identifier is drawn at initdb; an oid is not given to another database of the same server soon.
_IDENTITY = """
SELECT format('%s/%s', system_identifier, oid)
FROM pg_control_system(), pg_database
WHERE datname = current_database()
"""


class Pairing(msgspec.Struct, frozen=True):
    """The identities of what an earlier demo on this data folder ran on."""

    source: str
    view: str
    kafka: str


def check_pairing(servers: Servers, data_dir: Path) -> None:
    """Note what the demo runs on, the first time; later compare.

    Raises ConfigurationError when databases and topics come from different demos.
    """
    path = data_dir / "pairing.json"
    cluster = _cluster()
    found = Pairing(_database(servers.source_url), _database(servers.view_url), cluster.cluster_id)
    if path.exists():
        if msgspec.json.decode(path.read_bytes(), type=Pairing) != found:
            raise ConfigurationError(
                f"the databases and the Kafka are not those that the demo in {data_dir} began with: make clean-demo, "
                "then start again"
            )
        return
    if cluster.topics:
        raise ConfigurationError(
            f"{cluster.where} has topics of an earlier demo ({cluster.topics[0]}, …), and {data_dir} does not know "
            "them: make clean-demo, then start again"
        )
    path.write_bytes(msgspec.json.encode(found))


def delete_topics() -> Iterator[str]:
    """Delete all topics with the demo's prefix; yields what was deleted."""
    cluster = _cluster()
    if cluster.topics:
        with translated(cluster.where):
            for topic, deleted in cluster.client.delete_topics(cluster.topics).items():
                deleted.result(REQUEST_SECONDS)
                yield f"topic {topic}"


@dataclass(frozen=True, slots=True)
class _Cluster:
    client: AdminClient
    where: str
    cluster_id: str
    topics: list[str]


def _cluster() -> _Cluster:
    """Ask a cluster for its identity and for all topics with the demo's prefix."""
    settings = read_settings(KafkaSettings)
    where = f"Kafka {settings.kafka_bootstrap_servers}"
    client = admin(settings, name="viewkeeper-demo")
    with translated(where):
        metadata = client.list_topics(timeout=REQUEST_SECONDS)
    topics = sorted(topic for topic in metadata.topics if topic.startswith(f"{TOPIC_PREFIX}."))
    return _Cluster(client, where, str(metadata.cluster_id), topics)


def _database(url: str) -> str:
    with connect(url, name="viewkeeper-demo") as connection, postgres_translated(describe(url)):
        ((identity,),) = connection.execute(_IDENTITY)
    return str(identity)
