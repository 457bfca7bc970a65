"""Whether a run may be continued: data, network and options must be those that it was started with."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import WeightsIncompatibleError

#: Keys of the metadata that must not change, and the reason that is given.
COMPARED = {
    "manifest_sha256": "The data changed since the run was started (manifest.json lists what it was).",
    "prepared": "The input that the method prepares, such as mined pairs, changed since the run was started.",
    "architecture": "The plans' network changed.",
    "options": "The options differ.",
    "total_steps": "The length differs.",
}
#: Options of the loop that do not change the result.
FREE = frozenset({"timeout", "workers"})


def check_continuable(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], keys: Collection[str], free: Collection[str]
) -> None:
    """Compare the metadata of a checkpoint with those of the run that is to be continued.

    Args:
        path: the checkpoint, for the message.
        before: metadata of the checkpoint.
        now: metadata of the run.
        keys: those of :data:`COMPARED` that are compared.
        free: options that may differ, in addition to :data:`FREE`.

    Raises:
        WeightsIncompatibleError: names the first key that differs, its values, and the remedy.
    """
    for key in keys:
        old, new = (_comparable(metadata.get(key), {*FREE, *free}) for metadata in (before, now))
        if old != new:
            msg = f"--c: {path} cannot be continued: {key} differs ({_difference(old, new)}). {COMPARED[key]} "
            raise WeightsIncompatibleError(f"{msg}Restore it, or start anew without --c.")


def _comparable(value: Any, free: Collection[str]) -> Any:
    return {k: v for k, v in value.items() if k not in free} if isinstance(value, dict) else value


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{key}: was {before.get(key)}, is {now.get(key)}" for key in keys)
    return f"was {before}, is {now}"
