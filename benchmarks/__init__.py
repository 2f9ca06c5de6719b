"""Measurements: one question a file; results in results/, tables in README.md by tables.py."""
