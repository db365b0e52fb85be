"""Where a key belongs, and what stands for a record that lies elsewhere."""

import pytest

from cdc.partitions import image_key, is_astray, partition_of, record_of

ALL_BITS = 2**31

# Of Kafka's UtilsTest, which says what Java's murmur2 returns.
MURMUR2 = {
    b"21": -973932308,
    b"abc": 479470107,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
}


@pytest.mark.parametrize(("key", "number"), MURMUR2.items())
def test_a_key_belongs_where_java_puts_it(key: bytes, number: int) -> None:
    assert partition_of(key, ALL_BITS) == number % ALL_BITS


@pytest.mark.parametrize("key", [b"", b"{}", b"\xff\0\0\0\1{}"])
def test_images_of_one_key_in_several_partitions_are_kept_apart(key: bytes) -> None:
    images = [image_key(key, partition, 300) for partition in range(300)]
    assert len(set(images)) == 300
    assert [record_of(image) for image in images if is_astray(image)] == [
        (key, partition) for partition, image in enumerate(images) if image != key
    ]


def test_a_key_in_its_own_partition_is_kept_as_it_is() -> None:
    assert image_key(b"{}", partition_of(b"{}", 7), 7) == b"{}"
