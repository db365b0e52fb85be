SELECT cdc.detach(capture, table_schema, table_name) FROM cdc.captured_table;
DROP FUNCTION cdc.detach(text, name, name);
DROP FUNCTION cdc.attach(text, regclass);
DROP FUNCTION cdc.create_log_trigger(integer, regclass, text, text, text);
DROP FUNCTION cdc.refusal(regclass);
DROP TABLE cdc.request;
DROP TABLE cdc.captured_table;
DROP TABLE cdc.capture;
