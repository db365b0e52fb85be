"""The encodings that `VIEWKEEPER_ENCODING` names."""

from cdc.avro_encoding import AvroEncoding
from cdc.encoding import Encoding, JsonEncoding
from runtime.settings import KafkaSettings


def encoding_of(settings: KafkaSettings) -> Encoding:
    """Return the encoding that the settings name, with nothing known yet."""
    return AvroEncoding(settings) if settings.encoding == "avro" else JsonEncoding()
