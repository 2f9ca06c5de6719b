"""Measurements: one question a file, results in results/*.json, tables in README.md by tables.py."""
