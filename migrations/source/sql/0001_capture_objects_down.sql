-- A slot that is left would keep the server's WAL for ever. That of a capture that runs is an error, before anything is
-- changed: stop it first.
SELECT pg_catalog.pg_drop_replication_slot(s.slot_name)
FROM pg_catalog.pg_replication_slots s JOIN cdc.capture c ON s.slot_name = cdc.slot_name(c.name);
SELECT cdc.detach(capture, table_schema, table_name) FROM cdc.captured_table;
DO $$
DECLARE
    publication name;
BEGIN
    FOR publication IN SELECT cdc.publication_name(c.name) FROM cdc.capture c LOOP
        EXECUTE format('DROP PUBLICATION IF EXISTS %I', publication);
    END LOOP;
END
$$;
DROP FUNCTION
    cdc.log_changes(regclass, text[]),
    cdc.log_keys(integer, text[]),
    cdc.detach(text, name, name),
    cdc.complete(integer),
    cdc.restore_logging(integer, regclass),
    cdc.is_logging_granted(integer),
    cdc.log_roles(integer),
    cdc.grant_logging(integer, name),
    cdc.capture_role(),
    cdc.create_log_functions(integer, regclass, name[], text, name),
    cdc.create_log(integer, regclass, name[], name),
    cdc.attach_published(text, regclass, name[], name[], name[]),
    cdc.publish(integer),
    cdc.add_to_publication(integer),
    cdc.withdraw_refused(text),
    cdc.refuses_writers(cdc.captured_table),
    cdc.withdraw(text, oid),
    cdc.publication_trouble(integer),
    cdc.is_listed_so(cdc.captured_table, pg_catalog.pg_publication_rel),
    cdc.unpublishable(integer),
    cdc.identity_refusal(regclass, name[]),
    cdc.identity_columns(regclass),
    cdc.publication_refusal(regclass, name[]),
    cdc.exposure(regclass, smallint[]),
    cdc.slot_name(text),
    cdc.publication_name(text),
    cdc.register(text, regclass, text, text, name[], name[], name[], text),
    cdc.demand_same(cdc.captured_table, regclass, text, text, name[], name[], name[]),
    cdc.kept_key(text, regclass, name[]),
    cdc.settle(integer, text),
    cdc.demand_leader(text, text),
    cdc.drop_source(integer, text),
    cdc.other_source(text),
    cdc.attach(text, regclass, text, name[], name[], name[]),
    cdc.made_anew(oid, regclass),
    cdc.is_attached(regclass),
    cdc.restore_projecting(regclass),
    cdc.grant_projecting(),
    cdc.is_projecting_granted(),
    cdc.projected_as_of(),
    cdc.projected_key(regclass),
    cdc.create_rows(integer, regclass, name[], name[]),
    cdc.mask(name),
    cdc.columns_refusal(regclass, name[], name[], name[]),
    cdc.drop_log_triggers(integer, oid[]),
    cdc.create_log_triggers(integer, regclass, text),
    cdc.create_log_trigger(integer, regclass, text, text),
    cdc.limit_record(integer, integer),
    cdc.create_log_function(integer, regclass, name[], text, text),
    cdc.changed_keys(regclass, name[], text, text),
    cdc.row_key(name, text, text),
    cdc.statement_key(name, text, oid[], boolean),
    cdc.refusal(regclass, text, name[]),
    cdc.hold(regclass),
    cdc.tree_of(regclass),
    cdc.kind_of(regclass),
    cdc.key_refusal(regclass, text, name[]),
    cdc.has_unique_index(regclass, name[]),
    cdc.key_of(regclass, name[]);
DROP VIEW cdc.projecting, cdc.key_type;
DROP FUNCTION cdc.base_type(oid);
DROP TABLE cdc.request;
DROP TABLE cdc.captured_table;
DROP TABLE cdc.capture;
