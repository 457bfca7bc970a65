"""Output paths of import and export."""

import os
from pathlib import Path

from nnunet_invariance.errors import OutputError


def refuse_existing(path: Path) -> None:
    """Refuse an output path that exists, because import and export never overwrite.

    Raises:
        OutputError: it exists.

    >>> refuse_existing(Path("no_such_file.pth"))
    """
    if os.path.lexists(path):
        raise OutputError(f"{path} exists and is not overwritten. Remove it or give another name.")
