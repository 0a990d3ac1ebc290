"""Errors of the environment, as opposed to a user's mistake (ValueError) and a bug (assert)."""


class WorldError(RuntimeError):
    """The environment failed, for example a teacher is unreachable or a download failed. The message names the cause."""
