"""The expressions of filters and sums: a few of SQL's, read from text into a tree. Nothing is typed or run here.

    status = 'paid' AND NOT (total IS NULL OR country IN ('XX', 'YY'))
    price * quantity - coalesce(discount, 0)

Names are columns as the source table has them, lower-case unless in double quotes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from projector.errors import DefinitionError

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d+(?:\.\d+)?)
      | '(?P<text>(?:[^']|'')*)'
      | "(?P<quoted>(?:[^"]|"")+)"
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign><>|!=|<=|>=|[=<>+\-*(),])
    )""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_WORDS = frozenset({"and", "or", "not", "is", "null", "in", "true", "false", "coalesce"})
_MOST_DEPTH = 50
_MOST_TERMS = 200
"""Who reads the tree goes as deep as it is: each further term of a chain lies on the one before."""


@dataclass(frozen=True, slots=True)
class ColumnOf:
    """A column of the source table's row."""

    name: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant, never NULL."""

    value: Decimal | str | bool


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison by `sign`: =, <>, <, <=, > or >=."""

    sign: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Calculate:
    """Exact arithmetic by `sign`: +, - or *."""

    sign: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Both:
    """Conjunction, with SQL's three truth values."""

    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Either:
    """Disjunction, with SQL's three truth values."""

    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Negated:
    """NOT."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class IsNull:
    """IS NULL, true or false always."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class OneOf:
    """IN over constants."""

    of: "Expression"
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class FirstKnown:
    """COALESCE: the first that is not NULL."""

    of: tuple["Expression", ...]


Expression = ColumnOf | Literal | Compare | Calculate | Both | Either | Negated | IsNull | OneOf | FirstKnown


def parse(text: str) -> Expression:
    """Read an expression; raise DefinitionError, which says where it cannot be read, for anything else."""
    parser = _Parser(text)
    found = parser.either()
    parser.demand_end()
    return found


class _Parser:
    """Reads by precedence: OR, AND, NOT, comparisons, + and -, *, a sign, what stands alone."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._depth = 0
        self._terms = 0
        self._kind = ""
        self._piece = ""
        self._advance()

    def either(self) -> Expression:
        found = self._both()
        while self._joins("or"):
            found = Either(found, self._both())
        return found

    def demand_end(self) -> None:
        if self._kind != "end":
            raise self._error("an operator or the end is expected")

    def _both(self) -> Expression:
        found = self._negated()
        while self._joins("and"):
            found = Both(found, self._negated())
        return found

    def _negated(self) -> Expression:
        return Negated(self._deeper(self._negated)) if self._takes("not") else self._comparison()

    def _comparison(self) -> Expression:
        left = self._sum()
        if self._kind == "sign" and self._piece in _COMPARISONS:
            sign = _COMPARISONS[self._piece]
            self._advance()
            return Compare(sign, left, self._sum())
        if self._takes("is"):
            negated = self._takes("not")
            self._demand("null")
            return Negated(IsNull(left)) if negated else IsNull(left)
        if self._takes("in"):
            return OneOf(left, self._literals())
        if self._takes("not"):
            self._demand("in")
            return Negated(OneOf(left, self._literals()))
        return left

    def _sum(self) -> Expression:
        found = self._product()
        while (sign := self._piece) in ("+", "-") and self._joins(sign):
            found = Calculate(sign, found, self._product())
        return found

    def _product(self) -> Expression:
        found = self._signed()
        while self._joins("*"):
            found = Calculate("*", found, self._signed())
        return found

    def _signed(self) -> Expression:
        if not self._takes("-"):
            return self._alone()
        of = self._deeper(self._signed)
        if isinstance(of, Literal) and isinstance(of.value, Decimal):
            return Literal(-of.value)
        return Calculate("-", Literal(Decimal(0)), of)

    def _alone(self) -> Expression:
        if self._takes("("):
            found = self._deeper(self.either)
            self._demand(")")
            return found
        if self._takes("coalesce"):
            self._demand("(")
            of = [self._deeper(self.either)]
            while self._takes(","):
                of.append(self._deeper(self.either))
            self._demand(")")
            return FirstKnown(tuple(of))
        if self._kind == "quoted" or (self._kind == "word" and self._piece not in _WORDS):
            name = self._piece
            self._advance()
            return ColumnOf(name)
        return self._literal()

    def _literals(self) -> tuple[Literal, ...]:
        self._demand("(")
        found = [self._literal()]
        while self._takes(","):
            found.append(self._literal())
        self._demand(")")
        return tuple(found)

    def _literal(self) -> Literal:
        is_negative = self._takes("-")
        kind, piece = self._kind, self._piece
        if kind == "number":
            self._advance()
            return Literal(-Decimal(piece) if is_negative else Decimal(piece))
        if not is_negative and (kind == "text" or (kind == "word" and piece in ("true", "false"))):
            self._advance()
            return Literal(piece if kind == "text" else piece == "true")
        raise self._error("a column, a number, a 'text', TRUE or FALSE is expected")

    def _deeper(self, read: Callable[[], Expression]) -> Expression:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise self._error(f"it is nested more than {_MOST_DEPTH} deep")
        found = read()
        self._depth -= 1
        return found

    def _joins(self, piece: str) -> bool:
        """Take what another term of a chain comes after."""
        if not self._takes(piece):
            return False
        self._terms += 1
        if self._terms > _MOST_TERMS:
            raise self._error(f"it joins more than {_MOST_TERMS} terms; IN may have any number of constants")
        return True

    def _takes(self, piece: str) -> bool:
        if self._kind not in ("word", "sign") or self._piece != piece:
            return False
        self._advance()
        return True

    def _demand(self, piece: str) -> None:
        if not self._takes(piece):
            raise self._error(f"{piece.upper()} is expected")

    def _advance(self) -> None:
        rest = self._text[self._place :]
        found = _TOKEN.match(rest)
        if found is None:
            self._kind, self._piece = "end", rest.strip()
            if self._piece:
                raise self._error("this is none of the expressions that a view may have")
            return
        self._place += found.end()
        self._kind = found.lastgroup or ""
        piece = found[self._kind]
        doubled = {"text": "''", "quoted": '""'}.get(self._kind)
        self._piece = piece.replace(doubled, doubled[0]) if doubled else piece.lower()

    def _error(self, expected: str) -> DefinitionError:
        near = f"before {self._text[self._place :].strip()!r}" if self._text[self._place :].strip() else "at the end"
        return DefinitionError(
            f"expression {self._text!r}: {expected}, found {self._piece!r} {near}; there are =, <>, <, <=, >, >=, AND, "
            "OR, NOT, IS NULL, IN, +, -, *, coalesce(), columns and constants"
        )
