"""What a capture of this database needs of a view: which it is, its key, its as-of, and who is told of its changes."""

from alembic import op

revision = "0003"
down_revision = "0002"

# What readers see of each view: the relation that has its stable name now, its key, and as of when its rows are.
STABLE_VIEW = """
CREATE VIEW projector.stable_view AS
SELECT
    v.view AS view_name,
    c.oid::regclass AS relation,
    CASE jsonb_typeof(v.definition -> 'key')
        WHEN 'string' THEN ARRAY[v.definition ->> 'key']
        ELSE ARRAY(SELECT jsonb_array_elements_text(v.definition -> 'key'))
    END::name[] AS key_columns,
    a.as_of,
    a.flags
FROM projector.view_version AS v
JOIN public.viewkeeper_as_of AS a USING (view)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = v.definition ->> 'schema'
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = v.view
WHERE v.state = 'active'
"""

# Whoever captures a view may be another role than the one that keeps it. Nothing else in the schema is granted.
GRANTS = (
    "GRANT USAGE ON SCHEMA projector TO PUBLIC",
    "GRANT SELECT ON projector.stable_view TO PUBLIC",
)

# Whether the capture's schema is here and lets the owner of these functions call one of its own. By the catalog:
# without USAGE on a schema no name in it may be looked for.
MAY_CALL = """
CREATE FUNCTION projector.may_call(function_name name) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_proc AS p
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'cdc' AND p.proname = function_name
          AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'))
$$
"""

# Asked after a transaction's writes: whoever attaches the view waits for those that could not see it yet.
IS_CAPTURED = """
CREATE FUNCTION projector.is_captured(view_name text, number integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT projector.may_call('is_attached') THEN
        RETURN false;
    END IF;
    RETURN EXISTS (
        SELECT FROM projector.stable_view AS s
        JOIN projector.view_version AS v ON v.view = s.view_name
        WHERE v.view = $1 AND v.version = number AND v.state = 'active' AND cdc.is_attached(s.relation));
END
$$
"""

# The keys as cdc.log_keys takes them: an array literal a key column.
LOG_CHANGES = """
CREATE FUNCTION projector.log_changes(view_name text, VARIADIC keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM cdc.log_changes(s.relation, VARIADIC keys) FROM projector.stable_view s WHERE s.view_name = $1;
END
$$
"""

# The stable name was dropped and made again: what was attached is the new one.
MADE_ANEW = """
CREATE FUNCTION projector.made_anew(was oid, stable regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF projector.may_call('made_anew') THEN
        PERFORM cdc.made_anew(was, stable);
    END IF;
END
$$
"""

FUNCTIONS = (
    "may_call(name)",
    "is_captured(text, integer)",
    "log_changes(text, text[])",
    "made_anew(oid, regclass)",
)


def upgrade() -> None:
    """Make the view and the functions; whoever keeps views may call them."""
    for statement in (STABLE_VIEW, *GRANTS, MAY_CALL, IS_CAPTURED, LOG_CHANGES, MADE_ANEW):
        op.execute(statement)
    for function in FUNCTIONS:
        op.execute(f"REVOKE EXECUTE ON FUNCTION projector.{function} FROM PUBLIC")


def downgrade() -> None:
    """Drop them."""
    for function in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION projector.{function}")
    op.execute("DROP VIEW projector.stable_view")
    op.execute("REVOKE USAGE ON SCHEMA projector FROM PUBLIC")
