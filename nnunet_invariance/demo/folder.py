"""A demo's folder, which holds nothing of anyone else's, and nnU-Net's variables that point into it."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnunet_invariance.errors import OutputError

TREES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
OWN_FOLDERS = (*TREES, "unlabelled", "synthetic", "comparison", "logs")


def empty(out: Path) -> None:
    """Make the folder, or remove what an earlier demo left in it and nothing else.

    Raises:
        OutputError: it holds something that no demo has made.
    """
    found = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if strangers := found - {*OWN_FOLDERS, "index.html"}:
        msg = f"{out} holds {', '.join(sorted(strangers)[:3])}, which no demo has made. Give a new folder with --out."
        raise OutputError(msg)
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def environment(out: Path) -> Iterator[None]:
    """nnU-Net's three variables point into the demo, and it starts as few processes as it can."""
    values: Mapping[str, str] = {
        **{name: str(out / name) for name in TREES},
        # Each process that nnU-Net starts costs as much as half of a training here.
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_npp": "0",
        "nnUNet_nps": "0",
        # Waiting threads sleep: spinning ones slow everything down tenfold once the cores have other work, too.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
