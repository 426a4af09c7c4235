"""Installed queries: schedule, subscriptions, differences, back pressure."""
