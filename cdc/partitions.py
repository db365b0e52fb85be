"""In which partition of a topic a key belongs, and records that lie in another one. Pure.

Publishers with another partitioner, librdkafka's own among them, write a key there: whoever reads the topic meets two
records of one key, and no tombstone of the capture reaches theirs.
"""

from struct import unpack_from

# Neither JSON, which is UTF-8, nor Avro's framing begins with it.
_ASTRAY = b"\xff"
_NUMBER_BYTES = 4

_SEED, _FACTOR, _WORD = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Java's default partitioner gives a key, as `murmur2_random` of librdkafka does."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def image_key(key: bytes, partition: int, partitions: int) -> bytes:
    """Return what the image of a record in a partition is kept by: its key, if that belongs there.

    Otherwise a key that no record of an encoding has, so that the record neither hides nor replaces the key's own.
    """
    if partition_of(key, partitions) == partition and not key.startswith(_ASTRAY):
        return key
    return _ASTRAY + partition.to_bytes(_NUMBER_BYTES) + key


def is_astray(image: bytes) -> bool:
    """Return whether an image is kept by another key than its record's."""
    return image.startswith(_ASTRAY)


def record_of(image: bytes) -> tuple[bytes, int]:
    """Return key and partition of the record of an image that `is_astray`."""
    place, key = image[len(_ASTRAY) :][:_NUMBER_BYTES], image[len(_ASTRAY) + _NUMBER_BYTES :]
    return key, int.from_bytes(place)


def _murmur2(key: bytes) -> int:
    """Return the 32 bits that org.apache.kafka.common.utils.Utils.murmur2 returns, without a sign."""
    length = len(key)
    found = _SEED ^ length
    for word in unpack_from(f"<{length // 4}I", key):
        mixed = word * _FACTOR & _WORD
        found = (found * _FACTOR ^ (mixed ^ mixed >> 24) * _FACTOR) & _WORD
    if rest := key[length & ~3 :]:
        found = (found ^ int.from_bytes(rest, "little")) * _FACTOR & _WORD
    found = (found ^ found >> 13) * _FACTOR & _WORD
    return found ^ found >> 15
