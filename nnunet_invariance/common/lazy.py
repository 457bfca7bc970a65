"""Public names of a package that are imported when they are first used, so that importing the package costs nothing."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The three attributes of a package whose public names live in submodules (PEP 562).

        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"info_nce": ("PatchInfoNCE",)})

    Args:
        package: name of the package.
        exports: for each submodule, relative to the package, the public names that it defines.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package.
    """
    modules = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules}), sorted(modules)
