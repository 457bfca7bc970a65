"""Files of the Hugging Face hub, named ``hf:OWNER/NAME/FILE``. Nothing else in the package uses the network."""

from pathlib import Path

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError, WeightsNotFoundError

PREFIX = "hf:"


def local_file(name: Path | str) -> Path:
    """A path as it is; a file of the hub after its download into the hub's own cache.

    Raises:
        WeightsNotFoundError: not of the form ``hf:OWNER/NAME/FILE``, not on the hub, or the hub cannot be reached.
        MissingPackageError: ``huggingface_hub`` is not installed.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return Path(name)
    owner, _, rest = text.removeprefix(PREFIX).partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise WeightsNotFoundError(f"{text!r} names no file of the hub: expected hf:OWNER/NAME/FILE.")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        msg = f"{text} is a file of the hub, but huggingface_hub is not installed. "
        raise MissingPackageError(f"{msg}Install it: {install_command('hub')}") from error
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as error:  # what the hub's own errors are
        first_line = str(error).strip().split("\n")[0]
        msg = f"{text} could not be fetched ({type(error).__name__}: {first_line}). "
        raise WeightsNotFoundError(
            msg + "Check owner, name and file and that the hub can be reached, or give a file on this machine."
        ) from error
