"""A capture that is hit at one step of its work: how the tests name the step."""

from enum import StrEnum


class Kind(StrEnum):
    """What a unit is, by where it comes from."""

    ROUND = "round"
    CHUNK = "chunk"
    DRAIN = "drain"
    SWEEP = "sweep"
    ANY = "any"


class Step(StrEnum):
    """How far a unit has come."""

    READ = "read"
    PRODUCED = "produced"
    FLUSHED = "flushed"
    DELIVERED = "delivered"
    COMMITTED = "committed"
