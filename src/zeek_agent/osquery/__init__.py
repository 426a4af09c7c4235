"""The bridge to osquery: its tables in this agent's database, and this agent's tables in osquery.

`wire` implements the protocol, `client` keeps one connection and limits the load on osquery, `osquery_sql` writes
statements and decodes cells, `imported` makes tables of osquery's, `lookups` reads them for SQL statements, `recording`
copies its event tables, `export` provides ours, and `bridge` follows an osquery that starts and stops.
"""
