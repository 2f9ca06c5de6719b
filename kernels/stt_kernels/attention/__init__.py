"""Attention with a learned offset for the time, distance, order and phase between two events."""
