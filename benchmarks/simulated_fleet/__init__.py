"""A simulated fleet: many agents in a few processes, servers between them and a Zeek, and an oracle that counts rows.

The agents run the agent's own delivery code. What is simulated is a host: its event store has rows by a formula.
"""
