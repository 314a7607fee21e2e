"""Dashboards and alerts of the farm: ``python -m grafana`` writes what is generated.

It knows the metrics by their names alone. tests/monitoring hold those names to the code and to a running farm.
"""
