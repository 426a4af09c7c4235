"""Figures of the agent and the collector as Prometheus metrics."""
