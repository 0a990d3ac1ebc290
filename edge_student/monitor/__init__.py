"""Follows a training: metrics, evaluations, stuck workers, and runs that take longer than they promised."""
