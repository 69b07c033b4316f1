"""Sightline's helpers: the one package behind the notebooks."""

__version__ = "0.1.0"
