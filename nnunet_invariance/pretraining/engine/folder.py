"""The folder of a run: an earlier run is moved aside, the manifest and the log are written."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import OutputError
from nnunet_invariance.nnunet.cases import Manifest

logger = logging.getLogger(__name__)


def start_folder(folder: Path, manifest: Manifest) -> None:
    """Make the folder of a new run with its manifest; move the files of an earlier run to ``FOLDER_<date>``.

    Raises:
        OutputError: the folder cannot be made.
    """
    try:
        if any(folder.glob("checkpoint_*")):
            moved = folder.with_name(f"{folder.name}_{datetime.now():%Y%m%d_%H%M%S_%f}")
            folder.rename(moved)
            logger.warning("an earlier pre-training was moved to %s", moved)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"The output folder {folder} cannot be made ({error.strerror}). Check the path and its permissions."
        raise OutputError(msg) from error
    text = json.dumps(manifest.to_dict(), indent=1)
    atomic_write(folder / "manifest.json", lambda file: file.write(text.encode()))


@contextmanager
def package_log(group: DistributedContext) -> Iterator[Callable[[Path], None]]:
    """Collect the package's log until the yielded function names its file; other ranks than the first only warn.

    Raises:
        OutputError: the file cannot be written.
    """
    package = logging.getLogger("nnunet_invariance")
    if not group.is_main:
        package.setLevel(logging.WARNING)
    collected = MemoryHandler(capacity=1)  # hands everything on as soon as it has a target
    package.addHandler(collected)

    def write_to(file: Path) -> None:
        try:
            handler = logging.FileHandler(file)
        except OSError as error:
            msg = f"The log {file} cannot be written ({error.strerror}). Check the path and its permissions."
            raise OutputError(msg) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        collected.setTarget(handler)
        collected.flush()

    try:
        yield write_to
    finally:
        package.removeHandler(collected)
        file_handler = collected.target
        collected.close()
        if file_handler:
            file_handler.close()
