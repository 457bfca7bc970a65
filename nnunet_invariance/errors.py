"""The named exceptions of the package.

Every message names the file, field or case, what was found, what was expected, and the remedy. The command line prints
the message without a traceback and exits with status 2.

>>> raise WeightsNotFoundError("There is no checkpoint a.safetensors. Check the spelling of the path.")
Traceback (most recent call last):
nnunet_invariance.errors.WeightsNotFoundError: There is no checkpoint a.safetensors. Check the spelling of the path.
"""


def printable(text: str) -> str:
    """Escape control characters except tab and newline, so that text from a file cannot control the terminal.

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
    """One of nnU-Net's own environment variables is not set, or names a folder that does not exist."""


class DatasetNotFoundError(InvarianceError):
    """nnUNet_raw and nnUNet_preprocessed contain no data set of that name or id."""


class NotPreprocessedError(InvarianceError):
    """The plans file or the preprocessed folder of a data set is missing or empty."""


class UnknownConfigurationError(InvarianceError):
    """The plans contain no configuration of that name."""


class UnsupportedConfigurationError(InvarianceError):
    """The configuration exists, but this trainer or method does not support it (dimensions, cascade, architecture)."""


class ImagesFolderError(InvarianceError):
    """A folder of unlabelled images is missing or empty, or its images have different numbers of channels."""


class TemplateError(InvarianceError):
    """A folder or file of shape templates is missing, empty or unreadable, or contains no label."""


class TooFewVolumesError(InvarianceError):
    """The data have fewer usable volumes than a method needs."""


class WeightsNotFoundError(InvarianceError):
    """There is no such file, or none of the four locations has weights for this trainer."""


class WeightsIncompatibleError(InvarianceError):
    """The weights belong to another method or architecture, or fill too few stages of the encoder."""


class CheckpointCorruptError(InvarianceError):
    """A checkpoint is truncated, of another format, or does not match its checksum."""


class UnsafeCheckpointError(InvarianceError):
    """Opening a checkpoint of another tool would run code or exhaust the memory; it was not opened."""


class OutputError(InvarianceError):
    """A file could not be written (disk full, permission); no incomplete file remains."""


class DamagedFileError(InvarianceError):
    """A JSON or CSV file is missing or truncated, or has other keys, columns or types than expected."""


class FolderLockedError(InvarianceError):
    """Another process works in the folder."""


class NonFiniteLossError(InvarianceError):
    """Losses, gradients or weights are not finite; the last good checkpoint is kept."""


class NonFiniteEmbeddingError(InvarianceError):
    """A volume, or its anatomical embedding, contains NaN or infinity."""


class ComparisonError(InvarianceError):
    """A comparison cannot be run or scored as requested (labels missing, too few cases, a stock command failed)."""


class MissingPackageError(InvarianceError):
    """The request needs a package of an extra that is not installed."""


class ShapeError(InvarianceError, ValueError):
    """A tensor that a loss or a module was given has the wrong shape."""


class VolumeError(InvarianceError):
    """An image or mask for ``register`` cannot be used (unreadable, not 3-D, not finite, empty, constant)."""


class BaseModelError(InvarianceError):
    """The folder of a diffusion model is incomplete, unsafe to open, or of another kind."""


class StyleFolderError(InvarianceError):
    """Slices, models or views of ``style`` are missing, incomplete, or of other data or another preprocessing."""


class DeviceMemoryError(InvarianceError):
    """The device's memory is too small for the requested resolution or batch size."""


class MethodContractError(InvarianceError):
    """A pre-training method breaks the contract of `pretraining/engine/method.py`."""


class WorkerError(InvarianceError):
    """A data worker or another rank of a run died, or did not answer in time."""
