"""How the stock nnU-Net commands find the classes of this package. Standard library only.

nnU-Net looks names up by walking its own folders (`recursive_find_python_class`). torch calls `autoload` at the end of
`import torch` (entry point group `torch.backends`), in every process, spawned workers included; `autoload` arranges
that nnU-Net's finder asks `REGISTRY` first. No trainer of ours is imported before its name is asked for.
`NNUNET_INVARIANCE_AUTOLOAD=0` switches the hook off; `_ext_trainers/` then serves as `nnUNet_extTrainer`.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_invariance import registry

SWITCH = "NNUNET_INVARIANCE_AUTOLOAD"
TRAINER_WALK = "nnunetv2.training.nnUNetTrainer"

# The package that nnU-Net would walk -> class name -> the module that defines it; trainers are in `registry`.
REGISTRY: dict[str, dict[str, str]] = {
    "nnunetv2.experiment_planning": {
        "PUIRPlanner": "nnunet_invariance.plans.puir_planner",
        "PUIRPlannerResEncL": "nnunet_invariance.plans.puir_planner",
    },
    "nnunetv2.preprocessing": {
        "MissingChannelsPreprocessor": "nnunet_invariance.nnunet.missing_files",
    },
    "nnunetv2.preprocessing.normalization": {
        "CTWindowTo01Normalization": "nnunet_invariance.plans.ct_window",
        "SoftTissueWindowNormalization": "nnunet_invariance.plans.soft_tissue_window",
    },
}

_MEANT_AS_LENGTH = re.compile(r"_?([1-9][0-9]*)_?e[a-z]*$", re.IGNORECASE)


def find_class(walk: str | None, name: str) -> type | None:
    """Our class of this name, where nnU-Net would walk the package `walk`; None when the name is not ours."""
    if walk == TRAINER_WALK:
        return find_trainer(name)
    module = REGISTRY.get(walk or "", {}).get(name)
    return None if module is None else getattr(importlib.import_module(module), name)


@functools.cache
def find_trainer(name: str) -> type | None:
    """The trainer NAME[_scratch][_<N>epoch[s]], the same class at every look-up; None when the name is not ours.

    A name with a suffix is a subclass that only sets `scratch = True` or `length_in_epochs = N`. It can be imported,
    and therefore pickled, as an attribute of `nnunet_invariance.trainers`.
    """
    parsed = registry.parse_trainer_name(name)
    if parsed is None:
        return None
    attributes: dict[str, Any] = {"scratch": True} if parsed.scratch else {}
    if parsed.epochs is not None:
        attributes["length_in_epochs"] = parsed.epochs
    trainer = parsed.entry.load()
    if not attributes:
        return trainer
    return type(
        name, (trainer,), {**attributes, "__module__": "nnunet_invariance.trainers", "__doc__": trainer.__doc__}
    )


def nearest_trainers(name: str) -> list[str]:
    """Our trainer names that a misspelt `name` may have meant, best first; a length in it is carried over."""
    from difflib import get_close_matches

    def key(name: str) -> str:
        return name.lower().replace("trainer", "")

    length = _MEANT_AS_LENGTH.search(name)
    stem, suffix = name, ""
    if length:
        stem, suffix = name[: length.start()], f"_{length[1]}epoch{'' if length[1] == '1' else 's'}"
    names = [
        base + twin
        for base, entry in registry.trainers().items()
        for twin in (("", "_scratch") if entry.has_scratch_twin else ("",))
    ]
    known = {key(name): name for name in names}
    return [known[match] + suffix for match in get_close_matches(key(stem), known, n=8)]


def ext_trainer_folder() -> str:
    """The folder to put into `nnUNet_extTrainer` where the hook is switched off."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "_ext_trainers")


def is_hooked() -> bool:
    """Whether nnU-Net's finder asks, or will ask once it is imported, our registry first."""
    return all(_is_patched(sys.modules[name]) if name in sys.modules else _finder in sys.meta_path for name in _HOOKS)


def autoload() -> None:
    """Hook into nnU-Net's finder, now or as soon as it is imported. Never raises; a second call changes nothing."""
    if os.environ.get(SWITCH) == "0":
        return
    try:
        for name in _HOOKS:
            if name in sys.modules:
                _patch(sys.modules[name])
            elif _finder not in sys.meta_path:
                sys.meta_path.insert(0, _finder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not break `import torch` for everything else
        _warn(repr(error))


def _registry_first(original: Callable) -> Callable:
    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        ours = find_class(current_module, class_name)
        return original(folder, class_name, current_module, *args, **kwargs) if ours is None else ours

    return recursive_find_python_class


def _with_nearest_names(original: Callable) -> Callable:
    @functools.wraps(original)
    def recursive_find_trainer_class_by_name(trainer_name: str) -> type:
        try:
            return original(trainer_name)
        except RuntimeError as error:
            # A RuntimeError of a broken import on nnU-Net's walk does not name the trainer; it passes as it is.
            if trainer_name in str(error) and (nearest := nearest_trainers(trainer_name)):
                error.args = (f"{error} Nearest trainers of nnunet_invariance: {', '.join(nearest)}.",)
            raise

    return recursive_find_trainer_class_by_name


_HOOKS = {
    "nnunetv2.utilities.find_class_by_name": ("recursive_find_python_class", _registry_first),
    "nnunetv2.utilities.find_objects": ("recursive_find_trainer_class_by_name", _with_nearest_names),
}


def _is_patched(module: ModuleType) -> bool:
    return hasattr(getattr(module, _HOOKS[module.__name__][0], None), "_nnunet_invariance")


def _patch(module: ModuleType) -> None:
    """Replace nnU-Net's function in its own module and in every module that has imported it already."""
    attribute, wrap = _HOOKS[module.__name__]
    original = getattr(module, attribute, None)
    if original is None:
        _warn(f"{module.__name__} has no {attribute}")
        return
    if _is_patched(module):
        return
    replacement = wrap(original)
    setattr(replacement, "_nnunet_invariance", True)  # noqa: B010 - a function has no such attribute for type checkers
    for name, loaded in list(sys.modules.items()):
        if name.split(".")[0] == "nnunetv2" and getattr(loaded, "__dict__", {}).get(attribute) is original:
            setattr(loaded, attribute, replacement)


def _warn(reason: str) -> None:
    import logging

    logging.getLogger(__name__).warning(
        "nnunet_invariance could not hook into nnU-Net (%s): its trainers are not found by name. Remedy: install a "
        "supported nnunetv2, or set nnUNet_extTrainer=%s",
        reason,
        ext_trainer_folder(),
    )


class _PatchOnImport:
    """A `sys.meta_path` finder that answers the hooked modules alone, by asking the other finders, and patches them."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name not in _HOOKS:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)  # Python 3.10 and 3.11 still accept finders without it
            spec = None if finder is self or find_spec is None else find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            if module.__name__ in _HOOKS:  # a loader may serve several modules
                _patch(module)

        spec.loader.exec_module = execute_and_patch
        return spec


_finder = _PatchOnImport()
