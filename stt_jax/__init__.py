"""Spatiotemporal Transformers for behaviour logs: raw log in, recommendations out."""
