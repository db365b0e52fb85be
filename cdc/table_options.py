"""Which tables are captured, and how: `VIEWKEEPER_CDC_TABLES` as a list of names, or as the path of a TOML file.

[[table]]
name = "public.tweets"
level = "row"        # or "statement", which it is when left out
key = ["tweet_id"]   # the primary key when left out
columns = ["tweet_id", "text", "email"]   # no other one leaves the database; all of them when left out
masks = ["email"]    # these leave it as a keyed hash

Of VIEWKEEPER_CDC_SOURCE=timestamp alone, which asks for a mode and takes no level:

mode = "timestamp+incrementing"   # or "timestamp", "incrementing", "bulk"
timestamp = ["updated_at", "created_at"]   # the first of them that is not NULL says when a row was changed
incrementing = "tweet_id"                  # a whole number that grows from row to row
"""

import tomllib
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from cdc.errors import WireError
from cdc.wire import TableName
from runtime.errors import ConfigurationError

FILE_SUFFIX = ".toml"

_ACCEPTED = {
    "name": "a table's name, name or schema.name",
    "level": "statement or row",
    "key": "a list of at least one column name, each once",
    "columns": "a list of at least one column name, each once",
    "masks": "a list of at least one column name, each once",
    "mode": "bulk, incrementing, timestamp or timestamp+incrementing",
    "timestamp": "a list of at least one column name, each once",
    "incrementing": "a column's name",
}


class Level(StrEnum):
    """Whether a table's triggers fire once a statement or once a row."""

    STATEMENT = "statement"
    ROW = "row"


class Mode(StrEnum):
    """How the timestamp source finds changed rows, in the words of the JDBC source connector."""

    BULK = "bulk"
    INCREMENTING = "incrementing"
    TIMESTAMP = "timestamp"
    TIMESTAMP_INCREMENTING = "timestamp+incrementing"


class TableOptions(BaseModel):
    """How one table is attached, or polled; what is None, nothing is said of."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: TableName
    level: Level | None = Field(default=None, strict=False)
    key: tuple[str, ...] | None = Field(default=None, min_length=1, strict=False)
    columns: tuple[str, ...] | None = Field(default=None, min_length=1, strict=False)
    masks: tuple[str, ...] | None = Field(default=None, min_length=1, strict=False)
    mode: Mode | None = Field(default=None, strict=False)
    timestamp: tuple[str, ...] | None = Field(default=None, min_length=1, strict=False)
    incrementing: str | None = Field(default=None, min_length=1)

    @field_validator("name", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return TableName.parse(value)
        except WireError as error:
            raise ValueError(str(error)) from error

    @field_validator("key", "columns", "masks", "timestamp")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(set(value)) < len(value) or not all(value)):
            raise ValueError("a column twice, or without a name")
        return value


def table_options(wanted: str) -> tuple[TableOptions, ...]:
    """Read what `VIEWKEEPER_CDC_TABLES` says, `schema.table,…` or a path that ends in `.toml`; empty if it is unset.

    Raises ConfigurationError that names the file, the table, the option and what is accepted.
    """
    if wanted.strip().endswith(FILE_SUFFIX):
        return _of_file(Path(wanted.strip()))
    return tuple(TableOptions(name=TableName.parse(name)) for name in wanted.split(",") if name.strip())


def named_tables(wanted: str) -> tuple[TableName, ...]:
    """Read which tables `VIEWKEEPER_CDC_TABLES` names, as `table_options` does."""
    return tuple(options.name for options in table_options(wanted))


def _of_file(path: Path) -> tuple[TableOptions, ...]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"VIEWKEEPER_CDC_TABLES names {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    sections = content.pop("table", None)
    if content or not isinstance(sections, list) or not sections:
        found = f"it has {', '.join(map(repr, content))}" if content else "it has none"
        raise ConfigurationError(f"{path}: accepted is one section [[table]] or more, and nothing else; {found}")
    options = tuple(_of_section(path, number, section) for number, section in enumerate(sections, 1))
    names = [each.name for each in options]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{path}: table {name} has two sections [[table]]; one is accepted")
    return options


def _of_section(path: Path, number: int, section: object) -> TableOptions:
    try:
        return TableOptions.model_validate(section)
    except ValidationError as error:
        name = section.get("name") if isinstance(section, dict) else None
        table = f"table {name}" if isinstance(name, str) else f"[[table]] number {number}"
        complaints = [f"{path}: {table}: {_complaint(detail)}" for detail in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(complaints)) from None


def _complaint(detail: ErrorDetails) -> str:
    if not detail["loc"]:
        return "not a section; write [[table]]"
    option = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"there is no option {option}; accepted are {', '.join(_ACCEPTED)}"
    if detail["type"] == "missing":
        return f"option {option} is missing: {_ACCEPTED[option]}"
    return f"option {option} is wrong: {detail['input']!r}; accepted is {_ACCEPTED[option]}"


def unnamed(table: TableName) -> ConfigurationError:
    """Return the error for a table that is asked for, and is not polled."""
    return ConfigurationError(f"VIEWKEEPER_CDC_TABLES does not name {table}: add it, with its mode")
