"""The bridge to osquery: its tables in this agent's database, and this agent's tables in osquery.

`wire` speaks the protocol, `client` keeps one connection and is kind to osquery, `imported` makes tables of what
osquery offers, `events` records its event tables, `export` offers ours, `bridge` lives with an osquery that comes and
goes.
"""
