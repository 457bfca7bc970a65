"""The named exceptions of the package.

Every message says which file, field or case is meant, what was found, what was expected, and the remedy. The command
line prints the message without a traceback and exits with status 2.
"""


def printable(text: str) -> str:
    """The text with control characters escaped, except tab and newline: text from a file cannot steer a terminal.

    >>> printable("red: \x1b[31m")
    'red: \\\\x1b[31m'
    """
    kept = (c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)


class InvarianceError(Exception):
    """Base class of every error that input, set-up or environment can cause."""

    def __str__(self) -> str:
        return printable(super().__str__())


class OptionError(InvarianceError, ValueError):
    """An option or an argument is unknown, of the wrong type, or out of range."""


class EnvironmentNotSetError(InvarianceError):
    """One of nnU-Net's own environment variables is not set, or points to a place that does not exist."""


class DatasetNotFoundError(InvarianceError):
    """No dataset of that name or id stands in nnUNet_raw or nnUNet_preprocessed."""


class NotPreprocessedError(InvarianceError):
    """The plans file or the preprocessed folder of a dataset is missing or empty."""


class UnknownConfigurationError(InvarianceError):
    """The plans hold no configuration of that name."""


class UnsupportedConfigurationError(InvarianceError):
    """The configuration exists, but this trainer or method does not support it (dimensions, cascade, architecture)."""


class ImagesFolderError(InvarianceError):
    """A folder of unlabelled images is missing, empty, or mixes channel counts."""


class TemplateError(InvarianceError):
    """A folder or file of shape templates is missing, empty, unreadable, or holds no label."""


class TooFewVolumesError(InvarianceError):
    """Fewer usable volumes are left than a method needs."""


class WeightsNotFoundError(InvarianceError):
    """None of the four places holds weights for this trainer."""


class WeightsIncompatibleError(InvarianceError):
    """The weights belong to another method or architecture, or cover too little of the encoder."""


class CheckpointCorruptError(InvarianceError):
    """A checkpoint is truncated, not safetensors, or does not match its checksum."""


class UnsafeCheckpointError(InvarianceError):
    """A foreign checkpoint would need code to be run in order to be opened; it was not opened."""


class OutputError(InvarianceError):
    """A file could not be written (disk full, permission); nothing half-written is left behind."""


class DamagedFileError(InvarianceError):
    """A JSON or CSV file is missing, truncated, or holds other keys, columns or types than expected."""


class FolderLockedError(InvarianceError):
    """Another process works in the folder."""


class NonFiniteLossError(InvarianceError):
    """Losses, gradients or weights are not finite; the last good checkpoint is kept."""


class ComparisonError(InvarianceError):
    """A comparison cannot be run or scored as asked (labels missing, too few cases, a stock command failed)."""


class MissingPackageError(InvarianceError):
    """A package of an extra is needed for what was asked, and is not installed."""


class ShapeError(InvarianceError, ValueError):
    """A tensor that a loss or a module was given has the wrong shape."""


class VolumeError(InvarianceError):
    """An image or mask handed to ``register`` cannot be used (unreadable, not 3-D, not finite, empty, constant)."""


class BaseModelError(InvarianceError):
    """The folder of a diffusion model is incomplete, unsafe to open, or of another kind."""


class StyleFolderError(InvarianceError):
    """Slices, models or views of ``style`` are missing, incomplete, or of other data or another preprocessing."""


class DeviceMemoryError(InvarianceError):
    """The device's memory is too small for the resolution or batch that was asked for."""


class MethodContractError(InvarianceError):
    """A pre-training method breaks the contract of `pretraining/engine/method.py`."""


class WorkerError(InvarianceError):
    """A data worker or another rank of a run died, or did not answer in time."""
