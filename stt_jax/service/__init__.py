"""The service: events and requests over HTTP, live states in memory, every event on disk."""
