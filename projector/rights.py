"""What others have attached to a table or a view of ours: owner, grants, comments, and what depends on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import Connection, sql
from psycopg.rows import class_row

RELATION = """
SELECT c.oid, c.relkind::text AS kind, pg_get_userbyid(c.relowner)::text AS owner,
    coalesce(c.reloptions, '{}') AS options, obj_description(c.oid, 'pg_class') AS comment
FROM pg_class c
WHERE c.oid = to_regclass(%s)
"""

# Of the relation and, with a name, of one of its columns; no grantee means PUBLIC.
GRANTS = """
SELECT NULL AS column, CASE WHEN acl.grantee <> 0 THEN pg_get_userbyid(acl.grantee)::text END AS grantee,
    acl.privilege_type AS privilege, acl.is_grantable
FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
WHERE c.oid = %(oid)s
UNION ALL
SELECT a.attname::text, CASE WHEN acl.grantee <> 0 THEN pg_get_userbyid(acl.grantee)::text END,
    acl.privilege_type, acl.is_grantable
FROM pg_attribute a, aclexplode(a.attacl) AS acl
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""

COLUMN_COMMENTS = """
SELECT attname::text, col_description(attrelid, attnum)
FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NOT NULL
"""

# What would go, or refuses to, with some relations: what uses them or their row types, and triggers and rules of
# theirs. A view depends on another by its rule, and is named itself.
DEPENDENTS = """
WITH ours AS (
    SELECT 'pg_class'::regclass::oid AS class, c.oid AS object FROM pg_class c WHERE c.oid = ANY (%(relations)s)
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid
    FROM pg_class c JOIN pg_type t ON t.oid = c.reltype OR t.typelem = c.reltype
    WHERE c.oid = ANY (%(relations)s) AND c.reltype <> 0
)
SELECT DISTINCT CASE
    WHEN r.ev_class <> ALL (%(relations)s) THEN pg_describe_object('pg_class'::regclass, r.ev_class, 0)
    ELSE pg_describe_object(d.classid, d.objid, d.objsubid)
END AS dependent
FROM ours
JOIN pg_depend d ON d.refclassid = ours.class AND d.refobjid = ours.object
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
WHERE d.deptype = 'n' AND (r.oid IS NULL OR r.ev_class <> ALL (%(relations)s))
OR d.deptype = 'a' AND (r.rulename <> '_RETURN' OR NOT t.tgisinternal)
ORDER BY dependent
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """A privilege on a relation, or on one of its columns, that somebody has; no grantee means everybody."""

    column: str | None
    grantee: str | None
    privilege: str
    is_grantable: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table or view; `kind` as pg_class has it, `options` as `name=value`."""

    oid: int
    kind: str
    owner: str
    options: Sequence[str]
    comment: str | None


@dataclass(frozen=True, slots=True)
class Attached:
    """Owner, grants and comments of a relation and of its columns."""

    relation: Relation
    grants: Sequence[Grant]
    column_comments: Sequence[tuple[str, str]]


def find_relation(connection: Connection, name: sql.Identifier) -> Relation | None:
    """Return the relation of a name, None if there is none."""
    with connection.cursor(row_factory=class_row(Relation)) as cursor:
        return cursor.execute(RELATION, [name.as_string(None)]).fetchone()


def attached_to(connection: Connection, relation: Relation) -> Attached:
    """Read what is attached to a relation."""
    with connection.cursor(row_factory=class_row(Grant)) as cursor:
        grants = cursor.execute(GRANTS, {"oid": relation.oid}).fetchall()
    return Attached(relation, grants, connection.execute(COLUMN_COMMENTS, [relation.oid]).fetchall())


def dependents(connection: Connection, relations: Sequence[Relation]) -> list[str]:
    """Name what hangs on some relations and would be lost, or in the way, when they are dropped."""
    oids = [relation.oid for relation in relations]
    return [name for (name,) in connection.execute(DEPENDENTS, {"relations": oids})]


def attach(connection: Connection, name: sql.Identifier, attached: Attached, columns: Sequence[str]) -> None:
    """Give the relation `name`, which has these columns, what was attached to another; what it was made with goes.

    Raises psycopg's InsufficientPrivilege where this role may not give a relation to its owner.
    """
    made = find_relation(connection, name)
    if made is None:
        raise ValueError(f"{name.as_string(None)} is not there")
    # In one go: readers may wait for the end of this transaction.
    statements = _statements(name, made, attached_to(connection, made).grants, attached, columns)
    connection.execute(sql.SQL(";\n").join(statements).as_bytes(connection))


def _statements(
    name: sql.Identifier, made: Relation, made_with: Sequence[Grant], attached: Attached, columns: Sequence[str]
) -> Iterator[sql.Composed]:
    kind = sql.SQL("VIEW" if made.kind == "v" else "TABLE")
    for grantee in {grant.grantee for grant in made_with}:
        yield sql.SQL("REVOKE ALL ON {} FROM {}").format(name, _role(grantee))
    if made.owner != attached.relation.owner:
        owner = sql.Identifier(attached.relation.owner)
        yield sql.SQL("ALTER {} {} OWNER TO {}").format(kind, name, owner)
    for grant in attached.grants:
        if grant.column is None or grant.column in columns:
            yield _granted(name, grant)
    yield sql.SQL("COMMENT ON {} {} IS {}").format(kind, name, sql.Literal(attached.relation.comment))
    for column, comment in attached.column_comments:
        if column in columns:
            on = sql.SQL("{}.{}").format(name, sql.Identifier(column))
            yield sql.SQL("COMMENT ON COLUMN {} IS {}").format(on, sql.Literal(comment))


def _granted(name: sql.Identifier, grant: Grant) -> sql.Composed:
    return sql.SQL("GRANT {privilege}{column} ON {name} TO {grantee}{option}").format(
        privilege=sql.SQL(grant.privilege),
        column=sql.SQL(" ({})").format(sql.Identifier(grant.column)) if grant.column else sql.SQL(""),
        name=name,
        grantee=_role(grant.grantee),
        option=sql.SQL(" WITH GRANT OPTION" if grant.is_grantable else ""),
    )


def _role(grantee: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
