"""Flags of the five commands: defaults, units and validation. Never torch, never scheduler."""
