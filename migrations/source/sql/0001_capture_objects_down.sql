SELECT cdc.detach(capture, table_schema, table_name) FROM cdc.captured_table;
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
    cdc.is_attached(text, regclass, name, name, text, name[], name[], name[]),
    cdc.attach(text, regclass, text, name[], name[], name[]),
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
    cdc.tree_of(regclass),
    cdc.kind_of(regclass),
    cdc.key_refusal(regclass, text, name[]),
    cdc.has_unique_index(regclass, name[]),
    cdc.key_of(regclass, name[]);
DROP VIEW cdc.key_type;
DROP FUNCTION cdc.base_type(oid);
DROP TABLE cdc.request;
DROP TABLE cdc.captured_table;
DROP TABLE cdc.capture;
