"""Stored results of queries that report differences: hashes and rows in a file of their own, within a budget."""
