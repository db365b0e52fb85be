"""The definition language, where definitions are found, and what a version's tables are called."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cdc.wire import TableName
from projector.contributions import slots
from projector.definition import Column, ColumnType, Count, Field, Format, Resource, Row, Sum, View
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
    assert [slot.name for slot in slots(user_information, TableName("public", "follows"))] == [
        "follower_id",
        "followee_id",
    ]


AGE, NAME = Column("age", ColumnType.INTEGER), Column("name", ColumnType.TEXT)


def counted(where: str | None = None, columns: tuple[Column, ...] = ()) -> Count:
    return Count("pets", of="public.pets", by="owner_id", where=where, columns=columns)


def summed(value: str, column: Column, name: str = "total") -> Sum:
    return Sum(name, of="public.pets", by="owner_id", value=value, columns=(column,))


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
        ({"measures": (Count("xmin", of="pets", by="owner_id"),)}, "column 'xmin' is Postgres's own"),
        ({"measures": (Count("pets", of="my schema.pets", by="owner_id"),)}, "must be of letters"),
        (
            {"measures": (counted(where="age > 3"),)},
            "where of 'pets': it reads column 'age', whose type is not declared",
        ),
        ({"measures": (counted(where="3"),)}, "where of 'pets' is a number, and is to be a truth value"),
        ({"measures": (counted(where="age >"),)}, "where of 'pets': expression 'age >'"),
        ({"measures": (counted(columns=(AGE,)),)}, "'pets' declares column 'age', which none of its expressions reads"),
        ({"measures": (summed("age", AGE, "a" * 57),)}, "has a name of at most 56 letters"),
        ({"measures": (summed("name", NAME),)}, "value of 'total' is text, and is to be a number"),
        (
            {"measures": (summed("age", AGE), counted(where="age = 'x'", columns=(Column("age", ColumnType.TEXT),)))},
            "column 'age' of public.pets is integer in one measure and text in another",
        ),
        ({"indexes": (("pets", "age"),)}, "an index is over 'age', which is no column of the view"),
        (
            {"indexes": ("pets",)},
            "indexes: Expected `array`, got `str` - at `$[0]`: a tuple of one thing is (thing,), with a comma",
        ),
        ({"indexes": ((),)}, "an index is over no column"),
        ({"indexes": (("pets",), ("pets",))}, "two indexes are over pets"),
        ({"resource": Resource("/people", ())}, "path '/people': write it as"),
        ({"resource": Resource("/people/{id}", (Field("age", "age"),))}, "field 'age' shows 'age', which is no column"),
        ({"resource": Resource("/people/{id}", (Field("id", "id", Format.CALENDAR),))}, "only a timestamptz"),
        (
            {"row": Row("public.people", (Column("id", "float"),))},  # type: ignore[arg-type] # the slip
            "view 'person': row: Invalid enum value 'float' - at `$.columns[0].type`",
        ),
        (
            {"measures": (summed("age", Column("age", "real")),)},  # type: ignore[arg-type] # the slip
            "measures: Invalid enum value 'real' - at `$[0].columns[0].type`",
        ),
        ({"measures": counted()}, "measures: Expected `array`, got `object`: a tuple of one thing is (thing,)"),
        (
            {"measures": (counted("age > 3", AGE),)},  # type: ignore[arg-type] # the slip
            "measures: Expected `array`, got `object` - at `$[0].columns`: a tuple of one thing is (thing,)",
        ),
        (
            {"resource": Resource("/people/{id}", (Field("id", "id", "calender"),))},  # type: ignore[arg-type] # the slip
            "resource: Invalid enum value 'calender' - at `$.fields[0].format`",
        ),
        ({"name": None}, "view None: name: Expected `str`, got `null`"),
    ],
)
def test_contradiction_is_named(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(complaint)):
        view(**changed)


TENANT, PLACE = Column("tenant_id", ColumnType.INTEGER), Column("place", ColumnType.TEXT)
SHOP = {
    "key": ("tenant_id", "place"),
    "row": Row("public.shops", (PLACE, Column("name", ColumnType.TEXT), TENANT)),
    "measures": (Count("orders", of="public.orders", by=("tenant", "shop")),),
    "resource": Resource("/tenants/{tenantId}/shops/{place}/summary", (Field("name", "name"),)),
}
PEOPLE = Row("public.people", (Column("id", ColumnType.BIGINT),))
PROFILES = Row("public.profiles", (NAME,), key="person_id")


def test_a_key_of_several_columns_has_them_in_its_own_order() -> None:
    shop = view(**SHOP)
    assert shop.key_columns == (TENANT, PLACE)
    assert shop.column_names == ("place", "name", "tenant_id", "orders")
    assert shop.groups_of(shop.measures[0]) == {"tenant": ColumnType.INTEGER, "shop": ColumnType.TEXT}
    assert shop.resource.parameters == {1: "tenantId", 3: "place"}


def test_several_rows_share_the_key() -> None:
    person = view(row=(PEOPLE, PROFILES))
    assert person.column_names == ("id", "name", "pets")
    assert [table.name for table in person.source_tables] == ["people", "profiles", "pets"]
    assert person.key_of_row(PROFILES) == (Column("person_id", ColumnType.BIGINT),)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"key": ()}, "its key has 0 columns; it may have 1 to 32"),
        ({"key": ("place", "place")}, "its key has column 'place' twice"),
        ({"key": ("tenant_id", "town")}, "key 'town' is no column of its row; those are place, name, tenant_id"),
        (
            {"measures": (Count("orders", of="public.orders", by="shop"),)},
            "'orders' is by (shop), and the view's key is (tenant_id integer, place text): name a column for each",
        ),
        ({"measures": (Count("orders", of="public.orders", by=("a", "a")),)}, "'orders' is by column 'a' twice"),
        (
            {
                "measures": (
                    Count("orders", of="public.orders", by=("tenant", "shop")),
                    Count("returns", of="public.orders", by=("shop", "tenant")),
                )
            },
            "column 'shop' of public.orders is text in one measure and integer in another",
        ),
        (
            {"resource": Resource("/shops/{place}", ())},
            "write it as /name/{tenant_id}/{place}, with a parameter for each",
        ),
        ({"resource": Resource("/{tenant}/shops/{place}", ())}, "in order, and a name first"),
        ({"resource": Resource("/shops/{place}/{place}", ())}, "has parameter 'place' twice"),
        ({"row": ()}, "it has no row: name the table that gives it its rows"),
    ],
)
def test_contradiction_in_a_key_of_several_columns_is_named(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(complaint)):
        view(**{**SHOP, **changed})


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ((PEOPLE, PEOPLE), "two columns are called 'id': only the first row lists the key's columns"),
        ((PEOPLE, PROFILES, Row("public.names", (NAME,))), "two columns are called 'name'"),
        ((PEOPLE, PROFILES, Row("profiles", (AGE,))), "two rows are of public.profiles: make them one"),
        ((PEOPLE, Row("public.profiles", ())), "row public.profiles adds no column: leave it out"),
        ((PEOPLE, Row("public.pets", (NAME,))), "public.pets gives the rows and is counted"),
        ((PROFILES,), "key 'id' is no column of its row; those are name"),
        ((Row("public.people", PEOPLE.columns, key="id"), PROFILES), "public.people is the first row, whose key is"),
        (
            (PEOPLE, Row("public.profiles", (NAME,), key=("a", "b"))),
            "row public.profiles has key (a, b), and the view's key is (id bigint): name a column for each",
        ),
        ((PEOPLE, Row("public.profiles", (NAME,), key="Id")), "'Id' is no name"),
        (
            (PEOPLE, Row("public.profiles", (Column("viewkeeper_present_2", ColumnType.TEXT),))),
            "column 'viewkeeper_present_2' is Viewkeeper's own",
        ),
    ],
)
def test_contradiction_among_several_rows_is_named(rows: tuple[Row, ...], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(complaint)):
        view(row=rows)


def test_lists_and_names_of_types_are_taken_for_what_they_mean() -> None:
    row: Any = Row("public.people", [Column("id", "bigint"), Column("born", "timestamptz")])  # type: ignore[arg-type]
    pets: Any = Count("pets", of="public.pets", by=["owner_id"])  # type: ignore[arg-type]
    fields: Any = [Field("id", "id", "string")]  # type: ignore[arg-type]
    lists = view(key=["id"], row=row, measures=[pets], resource=Resource("/people/{id}", fields))
    tuples = view(key=("id",), measures=(Count("pets", of="public.pets", by=("owner_id",)),))
    assert lists == replace(tuples, resource=Resource("/people/{id}", (Field("id", "id", Format.STRING),)))
    assert lists.row_columns[1].type is ColumnType.TIMESTAMPTZ


@pytest.mark.parametrize("declared", [view(), view(**SHOP), view(row=(PEOPLE, PROFILES))])
def test_a_definition_that_was_stored_is_read_back(declared: View) -> None:
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(declared)), View) == declared


def test_no_column_of_a_counted_table_has_the_name_of_another_ones_slot() -> None:
    measures = (
        Count("x", of="public.pets", by="x_key", where="age > 3", columns=(AGE,)),
        Count("all", of="public.pets", by="x_key"),
        Sum("source", of="public.pets", by="x_amount", value="age", columns=(AGE,)),
        Count("source_too", of="public.pets", by="x_key", where="age IS NULL", columns=(AGE,)),
    )
    names = [slot.name for slot in slots(view(measures=measures), TableName("public", "pets"))]
    assert names == ["x.key", "x_key", "x_amount", "source_too.key", "source.amount"]


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
        ("unset.py", "import os\nos.environ['NO_SUCH']", "cannot import unset.py: KeyError: 'NO_SUCH'"),
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
