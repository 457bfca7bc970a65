"""Lazy imports: the public names of a package are imported on first use, so that importing the package is fast."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Create ``__getattr__``, ``__dir__`` and ``__all__`` for a package with lazily imported names (PEP 562).

        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"info_nce": ("PatchInfoNCE",)})

    Args:
        package: name of the package.
        exports: public names by submodule; the submodule is relative to the package.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package.
    """
    modules = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # later accesses bypass __getattr__
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules}), sorted(modules)
