"""Measurements: one question a file; results in results/, filled into the documents by tables.py."""
