"""The few kinds of error a user can cause. Each message says who, expected, got, what to do."""


class MednormError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line and exits 2."""


class ShapeError(MednormError, ValueError):
    """A tensor has the wrong rank, the wrong number of channels, or too few values."""


class DataError(MednormError, ValueError):
    """A file of images, masks or labels cannot be used; the message names the file and the row."""


class ConfigError(MednormError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class RunError(MednormError, RuntimeError):
    """A run or study on disk is missing, unfinished, or was made with other settings."""


class MissingExtraError(MednormError, ImportError):
    """A part was asked for whose packages are not installed; the message names the extra."""
