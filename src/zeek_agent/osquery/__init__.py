"""The bridge to osquery: its tables in this agent's database, and this agent's tables in osquery.

`wire` speaks the protocol, `client` keeps one connection and is kind to osquery, `questions` writes the SQL and reads
the cells, `imported` makes tables of what osquery offers, `recording` copies its event tables, `export` offers ours,
`bridge` lives with an osquery that comes and goes.
"""
