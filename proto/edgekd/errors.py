"""Failures of the world, which are neither the user's mistake nor ours."""


class WorldError(RuntimeError):
    """The world failed: a teacher is away, a download did not come. Not the user's mistake, and not ours."""
