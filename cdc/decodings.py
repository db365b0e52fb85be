"""The decodings that `VIEWKEEPER_ENCODING` names."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from cdc.decoding import Decoding, JsonDecoding
from runtime.settings import KafkaSettings


@contextmanager
def open_decoding(settings: KafkaSettings) -> Iterator[Decoding]:
    """Give the decoding that the settings name, with nothing known yet."""
    if settings.encoding == "json":
        yield JsonDecoding()
        return
    # Imported only where it is used: the registry's client takes 18 MB.
    from cdc.avro_decoding import AvroDecoding
    from runtime.registry import Registry

    with closing(Registry(settings)) as registry:
        yield AvroDecoding(registry)
