"""The encodings that `VIEWKEEPER_ENCODING` names."""

from cdc.encoding import Encoding, JsonEncoding
from runtime.settings import KafkaSettings


def encoding_of(settings: KafkaSettings) -> Encoding:
    """Return the encoding that the settings name, with nothing known yet."""
    if settings.encoding == "json":
        return JsonEncoding()
    # Imported only where it is used: the registry's client takes 18 MB, an eighth of what a capture may.
    from cdc.avro_encoding import AvroEncoding

    return AvroEncoding(settings)
