"""The definition language, where definitions are found, and what a version's tables are called."""

import re
from pathlib import Path
from typing import Any

import pytest

from cdc.wire import TableName
from projector.definition import Column, ColumnType, Count, Field, Format, Resource, Row, View
from projector.errors import DefinitionError
from projector.loading import load_views
from projector.tables import IDENTIFIER_BYTES, contribution_table_name, view_table_name
from views.user_information import user_information


def view(**changed: Any) -> View:
    parts: dict[str, Any] = {
        "name": "person",
        "key": "id",
        "row": Row("public.people", (Column("id", ColumnType.BIGINT), Column("born", ColumnType.TIMESTAMPTZ))),
        "measures": (Count("pets", of="public.pets", by="owner_id"),),
        "resource": Resource("/people/{id}", (Field("id", "id"),)),
    }
    return View(**{**parts, **changed})


def test_shipped_view_lists_its_columns_in_order() -> None:
    assert user_information.column_names[:2] == ("user_id", "username")
    assert user_information.column_names[9:] == ("tweet_count", "following_count", "follower_count", "like_count")
    assert user_information.source_tables == tuple(
        TableName("public", name) for name in ("users", "tweets", "follows", "likes")
    )
    assert user_information.group_columns(TableName("public", "follows")) == ("follower_id", "followee_id")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"key": "nobody"}, "key 'nobody' is no column of its row; those are id, born"),
        ({"key": "born"}, "key 'born' is timestamptz; a key is one of"),
        ({"name": "Person"}, "'Person' is no name"),
        ({"measures": (Count("born", of="public.pets", by="owner_id"),)}, "two columns are called 'born'"),
        ({"measures": (Count("pets", of="public.people", by="id"),)}, "gives the rows and is counted"),
        ({"measures": (Count("viewkeeper_present", of="pets", by="owner_id"),)}, "is Viewkeeper's own"),
        ({"measures": (Count("pets", of="pets", by="source_key"),)}, "column 'source_key' is Viewkeeper's own"),
        ({"measures": (Count("pets", of="my schema.pets", by="owner_id"),)}, "must be of letters"),
        ({"resource": Resource("/people", ())}, "path '/people': write it as"),
        ({"resource": Resource("/people/{id}", (Field("age", "age"),))}, "field 'age' shows 'age', which is no column"),
        ({"resource": Resource("/people/{id}", (Field("id", "id", Format.CALENDAR),))}, "only a timestamptz"),
    ],
)
def test_contradiction_is_named(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(complaint)):
        view(**changed)


DECLARATION = """
from projector.definition import Column, ColumnType, Count, Resource, Row, View

def person(name):
    row = Row("public.people", (Column("id", ColumnType.BIGINT),))
    return View(name, "id", row, (), Resource("/people/{id}", ()))
"""


def test_views_come_from_a_module() -> None:
    assert load_views("views.user_information") == (user_information,)


def test_views_come_from_a_file_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "shop.py"
    path.write_text(DECLARATION + "zebra = person('zebra')\nalso = zebra\nant = person('ant')\n")
    assert [view.name for view in load_views(str(path))] == ["zebra", "ant"]


def test_views_come_from_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_views.py").write_text(DECLARATION + "mine = person('mine')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert [view.name for view in load_views("my_own_views")] == ["mine"]


@pytest.mark.parametrize(
    ("spec", "text", "complaint"),
    [
        ("no_such_module", None, "there is no module 'no_such_module'"),
        ("views.no_such_module", None, "there is no module 'views.no_such_module'"),
        ("no_such_file.py", None, "there is no file 'no_such_file.py'"),
        ("empty.py", "", "empty.py declares no View"),
        ("twice.py", DECLARATION + "a = person('a')\nb = person('a')", "declares two views called 'a'"),
        ("broken.py", "views = (", "cannot import broken.py: SyntaxError"),
        ("unknown.py", "import no_such_dependency", "cannot import unknown.py: ModuleNotFoundError"),
        ("wrong.py", DECLARATION + "a = person('A')", "view 'A': 'A' is no name"),
    ],
)
def test_what_is_no_declaration_is_named(
    spec: str, text: str | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / spec).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DefinitionError, match=re.escape(complaint)):
        load_views(spec)


def test_tables_are_named_after_view_version_and_table() -> None:
    assert view_table_name(user_information, 3) == "user_information_v3"
    assert (
        contribution_table_name(user_information, 3, TableName("public", "tweets"))
        == "user_information_v3_public_tweets"
    )


def test_tables_of_two_schemas_never_share_a_name() -> None:
    names = {
        contribution_table_name(user_information, 1, table)
        for table in (TableName("public", "a_b"), TableName("public_a", "b"), TableName("PUBLIC", "a_b"))
    }
    assert len(names) == 3


def test_long_names_are_not_cut_off_by_postgres() -> None:
    long = view(name="v" * 63)
    names = {view_table_name(long, 1), view_table_name(long, 2), contribution_table_name(long, 1, TableName("x", "y"))}
    assert len(names) == 3
    assert all(len(name.encode()) <= IDENTIFIER_BYTES for name in names)
