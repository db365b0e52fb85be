"""The description of what is served: an OpenAPI 3.1 document, made from the views' definitions."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from api.limits import MOST_BODY_BYTES, MOST_HEAD_BYTES, MOST_URL_BYTES
from api.negotiation import EVENT_STREAM
from api.problems import MEDIA_TYPE
from projector.definition import ColumnType, Field, Format, View

Schema = dict[str, Any]

_INTEGER = "^(0|-?[1-9][0-9]{0,18})$"
_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
# How a key's column is spelled in the path.
_KEYS: dict[ColumnType, Schema] = {
    ColumnType.BIGINT: {"type": "string", "pattern": _INTEGER, "description": "64 bits, as Postgres writes it"},
    ColumnType.INTEGER: {"type": "string", "pattern": _INTEGER, "description": "32 bits, as Postgres writes it"},
    ColumnType.UUID: {"type": "string", "pattern": _UUID},
    ColumnType.TEXT: {"type": "string", "minLength": 1},
}
# How a column is shown in Format.JSON.
_VALUES: dict[ColumnType, Schema] = {
    ColumnType.BIGINT: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    ColumnType.INTEGER: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    ColumnType.NUMERIC: {"type": "string", "description": "a number with all of its digits, NaN or ±Infinity"},
    ColumnType.BOOLEAN: {"type": "boolean"},
    ColumnType.TEXT: {"type": "string"},
    ColumnType.UUID: {"type": "string", "pattern": _UUID},
    ColumnType.TIMESTAMPTZ: {
        "type": "string",
        "description": "RFC 3339, UTC, with microseconds; beyond the years 1 to 9999 as Postgres writes it",
    },
}
_CALENDAR: Schema = {"type": "string", "description": "as Tue Jan 22 15:14:44 +0000 2008, or ±infinity"}
_TIME: Schema = {"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.123456Z"]}

_STREAM = (
    "Events: `row`, its data the JSON of the row and its id the ETag without quotes; `gone`, its data `{}`, when there "
    "is no such row; `as-of`, its data the time that all before it reflects, or null while unknown."
)

_AS_OF = {"description": "the source's time that the reply fully reflects; left out while unknown", "schema": _TIME}
_ETAG = {"description": "the same for the same body", "schema": {"type": "string"}}
_RETRY = {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": True}
_ALLOW = {"description": "methods", "schema": {"type": "string"}, "required": True}


def openapi(views: Sequence[View]) -> Schema:
    """Return the document that describes the resources of `views`, health and metrics."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Viewkeeper",
            "version": version("viewkeeper"),
            "description": (
                f"URLs of up to {MOST_URL_BYTES}, headers of up to {MOST_HEAD_BYTES} and bodies of up to "
                f"{MOST_BODY_BYTES} bytes are taken."
            ),
        },
        "paths": {view.resource.path: _resource(view) for view in views} | _OPERATIONS,
        "components": {"schemas": {view.name: _row(view) for view in views} | {"problem": _PROBLEM}},
    }


def _resource(view: View) -> Schema:
    as_of = {"Viewkeeper-As-Of": _AS_OF}
    tagged = as_of | {"ETag": _ETAG}
    responses = {
        "200": {
            "description": "the row, or the stream of its changes",
            "headers": tagged,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{view.name}"}},
                EVENT_STREAM: {"schema": {"type": "string", "description": _STREAM}},
            },
        },
        "304": {"description": "the row is the one that If-None-Match names", "headers": tagged},
        "400": _problem("Viewkeeper-Min-As-Of is no time"),
        "404": _problem("there is no such row, or no key is spelled so", as_of),
        "405": _problem("another method than GET and HEAD", {"Allow": _ALLOW}),
        "406": _problem("a stream is asked for, and there are none of this view"),
        "413": _problem("the body is too large"),
        "414": _problem("the URL is too long"),
        "431": _problem("the headers are too large"),
        "503": _problem(
            "the store is away, too many requests wait, too many streams are open, or the time that was asked for is "
            "not reflected yet",
            as_of | {"Retry-After": _RETRY},
        ),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _KEYS[column.type]}
        for name, column in zip(view.resource.parameters.values(), view.key_columns, strict=True)
    ]
    parameters += [
        {
            "name": "Viewkeeper-Min-As-Of",
            "in": "header",
            "schema": _TIME,
            "description": "wait until the reply reflects what was committed in the source by this RFC 3339 time",
        },
        {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": "ETags that are known"},
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "string"},
            "description": "for a stream: the id of the last event that is known, which is not sent again",
        },
    ]
    operation = {"summary": f"A row of {view.name}", "parameters": parameters, "responses": responses}
    return {"get": operation | {"operationId": view.name}, "head": operation | {"operationId": f"{view.name}_head"}}


def _row(view: View) -> Schema:
    properties = {field.name: _field(view, field) for field in view.resource.fields}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _field(view: View, field: Field) -> Schema:
    measures = {measure.name: measure.type for measure in view.measures}
    kind = measures.get(field.column) or next(one.type for one in view.row_columns if one.name == field.column)
    if field.format is Format.CALENDAR:
        schema = _CALENDAR
    elif field.format is Format.STRING and kind is not ColumnType.TIMESTAMPTZ:
        schema = {"type": "string"}
    else:
        schema = _VALUES[kind]
    if field.column in measures or field.column in view.key_names:
        return schema
    return schema | {"type": [schema["type"], "null"]}


def _problem(description: str, headers: Schema | None = None) -> Schema:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/problem"}}}
    return {"description": description, "content": content} | ({"headers": headers} if headers else {})


def _text(description: str, media_type: str) -> Schema:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


_PROBLEM: Schema = {
    "description": "RFC 9457",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
_OPERATIONS: Schema = {
    "/livez": {"get": {"summary": "Whether the loop turns", "responses": {"200": _text("it does", "text/plain")}}},
    "/readyz": {
        "get": {
            "summary": "Whether the store answers",
            "responses": {"200": _text("it does", "text/plain"), "503": _text("why it does not", "text/plain")},
        }
    },
    "/metrics": {
        "get": {"summary": "Prometheus metrics", "responses": {"200": {"description": "in Prometheus's text format"}}}
    },
    "/openapi.json": {
        "get": {
            "summary": "This description",
            "responses": {
                "200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}
            },
        }
    },
}
