"""Measurements: one question a file; results in results/, the documents filled by tables.py."""
