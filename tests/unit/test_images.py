"""A topic's images in their temporary file."""

from collections.abc import Iterator

import pytest

from cdc.images import Images, open_images
from cdc.judging import Kind, digest

ROWS = {f"k{number:03}".encode(): digest(b"row %d" % number) for number in range(100)}


@pytest.fixture
def images() -> Iterator[Images]:
    with open_images() as images:
        images.take(dict(ROWS))
        yield images


def left(images: Images) -> list[bytes]:
    return [key for page in images.pages(7) for key in page]


def test_the_newest_image_of_a_key_counts(images: Images) -> None:
    images.take({b"k001": digest(b"newer"), b"k002": None, b"": digest(b"of an empty key")})
    assert images.shown([b"k001", b""]) == {b"k001": digest(b"newer"), b"": digest(b"of an empty key")}
    assert left(images) == sorted({*ROWS, b""} - {b"k002"})


def test_what_is_left_after_all_rows_is_unequal_missing_or_a_ghost(images: Images) -> None:
    images.take({b"k001": digest(b"stale"), b"ghost": digest(b"ghost")})
    rows = [*ROWS.items(), (b"new", digest(b"new"))]
    assert images.compare(rows[:50]) == 1
    assert images.compare(rows[50:]) == 1
    assert left(images) == [b"ghost", b"k001", b"new"]
    assert images.count() == 3
    assert images.shown([b"new"]) == {b"new": None}


def test_only_keys_that_are_left_follow_the_topic(images: Images) -> None:
    images.take({b"k001": digest(b"stale"), b"k002": digest(b"stale")})
    images.compare(ROWS.items())
    images.renew({b"k001": digest(b"newer"), b"k002": None, b"k003": digest(b"newer")})
    assert left(images) == [b"k001", b"k002"]
    assert images.shown([b"k001", b"k002"]) == {b"k001": digest(b"newer"), b"k002": None}


def test_pages_go_on_while_keys_are_forgotten(images: Images) -> None:
    seen = []
    for page in images.pages(30):
        assert len(page) <= 30
        images.forget(page)
        seen += page
    assert seen == sorted(ROWS)
    assert images.count() == 0


def test_differences_are_kept_by_kind(images: Images) -> None:
    images.mark({b"k001": Kind.STALE, b"k002": Kind.STALE, b"k003": Kind.FOREIGN})
    images.repaired([b"k002"])
    assert list(images.differences(Kind.STALE)) == [(b"k001", False), (b"k002", True)]
    assert list(images.differences(Kind.STALE, 1)) == [(b"k001", False)]
    assert list(images.differences(Kind.GHOST)) == []
    assert [key for page in images.pages(10, repairable=True) for key in page] == [b"k001", b"k002"]
