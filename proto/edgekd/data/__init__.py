"""Data sets, models and devices by name. May load torch."""
