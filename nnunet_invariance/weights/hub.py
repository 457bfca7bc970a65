"""Files on the Hugging Face hub, named ``hf:OWNER/NAME/FILE``. No other module uses the network."""

from pathlib import Path

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError, WeightsNotFoundError

PREFIX = "hf:"


def local_file(name: Path | str) -> Path:
    """The local path of a file; a file on the hub is downloaded into the cache of the hub first.

    Raises:
        WeightsNotFoundError: not of the form ``hf:OWNER/NAME/FILE``, not on the hub, or the hub cannot be reached.
        MissingPackageError: ``huggingface_hub`` is not installed.

    >>> local_file("checkpoint_final.safetensors").name
    'checkpoint_final.safetensors'
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return Path(name)
    owner, _, rest = text.removeprefix(PREFIX).partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise WeightsNotFoundError(f"{text!r} does not name a file on the hub; expected hf:OWNER/NAME/FILE.")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        msg = f"{text} is a file on the hub, but huggingface_hub is not installed. "
        raise MissingPackageError(f"{msg}Install it: {install_command('hub')}") from error
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as error:  # the base classes of the hub's own errors
        first_line = str(error).strip().split("\n")[0]
        msg = f"{text} could not be downloaded ({type(error).__name__}: {first_line}). "
        raise WeightsNotFoundError(
            msg + "Check owner, name, file and the connection to the hub, or use a local file."
        ) from error
