"""Errors a user can act on. Each message says the rule, the value it got, and the remedy."""


class EffaceError(Exception):
    """Base of every error that Efface raises on purpose."""


class BadSetting(EffaceError, ValueError):
    """A setting is unknown, missing or out of range; nothing has started."""


class DataError(EffaceError):
    """A data file is missing, truncated, or of the wrong shape."""


class StoreError(EffaceError):
    """A client's store cannot be read, or belongs to another model."""
