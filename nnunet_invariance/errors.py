"""The named exceptions of the package.

Every message says which file, field or case is meant, what was found, what was expected, and the remedy. The command
line prints the message without a traceback and exits with status 2.
"""


class InvarianceError(Exception):
    """Base of every error that input, set-up or environment can cause."""


class OptionError(InvarianceError):
    """A field of an options block is unknown, of the wrong type, or out of range."""


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


class NonFiniteLossError(InvarianceError):
    """The loss was not finite in five consecutive steps; the last good checkpoint is kept."""


class ComparisonError(InvarianceError):
    """A comparison cannot be run or scored as asked (labels missing, too few cases, a stock command failed)."""


class ShapeError(InvarianceError):
    """Tensors handed to a loss or a module do not fit each other."""


class MissingPackageError(InvarianceError):
    """A package of an extra is needed for what was asked, and is not installed."""
