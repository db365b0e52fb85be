"""The decodings that `VIEWKEEPER_ENCODING` names."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from cdc.avro_decoding import AvroDecoding
from cdc.decoding import Decoding, JsonDecoding
from runtime.registry import Registry
from runtime.settings import KafkaSettings


@contextmanager
def open_decoding(settings: KafkaSettings) -> Iterator[Decoding]:
    """Give the decoding that the settings name, with nothing known yet."""
    if settings.encoding == "json":
        yield JsonDecoding()
        return
    with closing(Registry(settings)) as registry:
        yield AvroDecoding(registry)
