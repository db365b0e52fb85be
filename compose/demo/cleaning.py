"""Takes back what the demo made."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from compose.demo.pairing import delete_topics
from compose.demo.servers import OwnServers, drop_databases
from compose.local.folder import held


def clean_demo(data_dir: Path, own: OwnServers) -> Iterator[str]:
    """Remove the data folder, and databases and topics from servers that are set; yields what was removed.

    Raises LocalSettingError while a demo uses the folder.
    """
    existed = data_dir.exists()
    with held(data_dir) as folder:
        if own.postgres_urls:
            yield from drop_databases(*own.postgres_urls)
        if own.kafka_bootstrap_servers:
            yield from delete_topics()
        shutil.rmtree(folder)
    if existed:
        yield f"folder {data_dir}"
