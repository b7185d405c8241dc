"""The one exception of this library."""


class Error(ValueError):
    """Anything a caller can get wrong: one sentence that says what was given, what is allowed and what to do."""


class RangeError(Error, IndexError):
    """A token id, token type or position outside its embedding table."""
