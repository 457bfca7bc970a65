"""The folder of a demo, and nnU-Net's environment variables that point into it."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnunet_invariance.errors import OutputError
from nnunet_invariance.plans.preflight import check_output

TREES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
OWN_FOLDERS = (*TREES, "unlabelled", "synthetic", "comparison", "logs")


def empty(out: Path) -> None:
    """Create the folder, or empty it if it contains nothing but an earlier demo.

    Raises:
        OutputError: the folder contains files that do not come from a demo, or cannot be made.
    """
    check_output(out)
    found = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if strangers := found - {*OWN_FOLDERS, "index.html"}:
        msg = f"{out} contains {', '.join(sorted(strangers)[:3])}, which no demo has made. Give another --out."
        raise OutputError(msg)
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def environment(out: Path) -> Iterator[None]:
    """Set nnU-Net's environment variables to the demo's folders and to the smallest number of worker processes."""
    values: Mapping[str, str] = {
        **{name: str(out / name) for name in TREES},
        # Starting a worker process takes about half as long as a training of the demo.
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_npp": "0",
        "nnUNet_nps": "0",
        # Threads that wait actively slow the demo down tenfold if other processes use the cores.
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
