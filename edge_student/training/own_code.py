"""Functions of the user that a training calls: their errors."""


class OwnCodeError(ValueError):
    """A function of the user failed or returned a wrong value. The message names its flag, so that no traceback is needed."""
