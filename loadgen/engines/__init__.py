"""Engines: what serves the model. Nothing here is imported by the load generator."""
