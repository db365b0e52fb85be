"""`VIEWKEEPER_CDC_TABLES`: a list of names or a TOML file, and what is said about a wrong one."""

from pathlib import Path

import pytest

from cdc.table_options import Level, Mode, TableOptions, table_options
from cdc.wire import TableName
from runtime.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tables.toml"


def test_a_list_names_tables_and_says_nothing_of_them() -> None:
    assert table_options("tweets, odd.users,") == (
        TableOptions(name=TableName("public", "tweets")),
        TableOptions(name=TableName("odd", "users")),
    )
    assert table_options(" ") == ()


def test_a_file_says_all_options(file: Path) -> None:
    file.write_text(
        '[[table]]\nname = "a"\ncolumns = ["x", "y"]\nmasks = ["y"]\n'
        '[[table]]\nname = "odd.b"\nlevel = "row"\nkey = ["x", "y"]\n'
        '[[table]]\nname = "c"\nmode = "timestamp+incrementing"\ntimestamp = ["t", "u"]\nincrementing = "i"\n'
    )
    assert table_options(str(file)) == (
        TableOptions(name=TableName("public", "a"), columns=("x", "y"), masks=("y",)),
        TableOptions(name=TableName("odd", "b"), level=Level.ROW, key=("x", "y")),
        TableOptions(
            name=TableName("public", "c"), mode=Mode.TIMESTAMP_INCREMENTING, timestamp=("t", "u"), incrementing="i"
        ),
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[[table]", "not TOML"),
        ("", "accepted is one section [[table]] or more, and nothing else; it has none"),
        ('[public.a]\nlevel = "row"', "accepted is one section [[table]] or more, and nothing else; it has 'public'"),
        ("table = []", "accepted is one section [[table]] or more"),
        ("table = [1]", "[[table]] number 1: not a section; write [[table]]"),
        ('[[table]]\nlevel = "row"', "[[table]] number 1: option name is missing: a table's name"),
        ("[[table]]\nname = 1", "[[table]] number 1: option name is wrong: 1; accepted is a table's name"),
        ('[[table]]\nname = "a b"', "table a b: option name is wrong: 'a b'; accepted is a table's name"),
        (
            '[[table]]\nname = "a"\nlevel = "rows"',
            "table a: option level is wrong: 'rows'; accepted is statement or row",
        ),
        (
            '[[table]]\nname = "a"\nmode = "fast"',
            "table a: option mode is wrong: 'fast'; accepted is bulk, incrementing",
        ),
        ('[[table]]\nname = "a"\nkey = "x"', "table a: option key is wrong: 'x'; accepted is a list of at least one"),
        ('[[table]]\nname = "a"\nkey = []', "table a: option key is wrong: []; accepted is a list of at least one"),
        ('[[table]]\nname = "a"\nkey = ["x", "x"]', "table a: option key is wrong: ['x', 'x']; accepted is a list"),
        ('[[table]]\nname = "a"\nkey = [""]', "table a: option key is wrong: ['']; accepted is a list"),
        ('[[table]]\nname = "a"\nkeys = ["x"]', "table a: there is no option keys; accepted are name, level, key"),
        ('[[table]]\nname = "a"\n[[table]]\nname = "public.a"', "table public.a has two sections [[table]]"),
    ],
)
def test_a_wrong_file_is_named_with_table_option_and_what_is_accepted(file: Path, content: str, complaint: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigurationError) as failed:
        table_options(str(file))
    assert str(failed.value).startswith(f"{file}: {complaint}")


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"VIEWKEEPER_CDC_TABLES names .*tables\.toml: No such file"):
        table_options(str(file))
