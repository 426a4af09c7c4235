"""The gateway: stands between agents on the bus and one Zeek or collector, for which it speaks over one WebSocket."""
