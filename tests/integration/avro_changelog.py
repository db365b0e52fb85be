"""Changelog topics written by hand in Avro, under schemas such as a capture registers."""

import json
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from fastavro import parse_schema, schemaless_writer

from cdc.avro_decoding import HEADER, MAGIC
from tests.integration.changelog import Changelog


class AvroChangelog(Changelog):
    """A changelog in Confluent's framing; `types` has the Avro type of each column of each table."""

    def __init__(
        self,
        bootstrap_servers: str,
        prefix: str,
        keys: Mapping[str, str],
        partitions: int,
        *,
        registry_url: str,
        types: Mapping[str, Mapping[str, str]],
    ) -> None:
        super().__init__(bootstrap_servers, prefix, keys, partitions)
        self._registry_url = registry_url
        self._types = types
        self._written: dict[str, tuple[int, Any]] = {}

    def put(self, table: str, row: Mapping[str, object], *, time: datetime | None = None) -> None:
        """Write a row's new state, in a record of this time, or of now."""
        key = self._key(table, *(row[name] for name in self._keys[table]))
        self.put_raw(table, key, self._encoded(table, row), time=time)

    def remove(self, table: str, *key: object) -> None:
        """Write a tombstone."""
        self.put_raw(table, self._key(table, *key), None)

    def _key(self, table: str, *key: object) -> bytes:
        names = self._keys[table]
        fields = [{"name": name, "type": self._types[table][name]} for name in names]
        return self._framed(f"{self.topic(table)}-key", fields, dict(zip(names, key, strict=True)))

    def _encoded(self, table: str, row: Mapping[str, object]) -> bytes:
        fields = [{"name": name, "type": ["null", kind], "default": None} for name, kind in self._types[table].items()]
        return self._framed(f"{self.topic(table)}-value", fields, row)

    def _framed(self, subject: str, fields: list[dict[str, Any]], record: Mapping[str, object]) -> bytes:
        if subject not in self._written:
            schema = {"type": "record", "name": "Row", "fields": fields}
            with SchemaRegistryClient({"url": self._registry_url}) as registry:
                number = registry.register_schema(subject, Schema(json.dumps(schema), "AVRO"))
            self._written[subject] = number, parse_schema(schema)
        number, parsed = self._written[subject]
        stream = BytesIO()
        stream.write(HEADER.pack(MAGIC, number))
        schemaless_writer(stream, parsed, dict(record))
        return stream.getvalue()
