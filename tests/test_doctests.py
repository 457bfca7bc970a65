"""Runs the ``>>>`` examples of every module of the package, and finds public classes without one.

``pytest --doctest-modules`` would import ``trainers/x.py`` as ``trainers.x``, a second copy of
``nnunet_invariance.trainers.x``. This test imports each module by its public name instead.
"""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXTRAS = {"accelerate", "convexadam", "diffusers", "huggingface_hub", "monai", "submitit", "transformers"}


def modules_with_examples() -> list[str]:
    """Names of the modules of the package whose text contains an example."""
    names = []
    for folder in ("nnunet_invariance", "trainers", "plans"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                parts = file.relative_to(ROOT).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                names.append(".".join(parts if folder == "nnunet_invariance" else ("nnunet_invariance", *parts)))
    return names


def packages() -> list[str]:
    """Names of the packages that say what is public."""
    found = [file.parent.relative_to(ROOT) for file in sorted((ROOT / "nnunet_invariance").rglob("__init__.py"))]
    names = [".".join(folder.parts) for folder in found if folder.name != "_ext_trainers"]
    return [*names, "nnunet_invariance.plans", "nnunet_invariance.trainers"]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in EXTRAS:
            pytest.skip(f"{name} needs the package {error.name}")
        raise
    found = sum(len(test.examples) for test in doctest.DocTestFinder().find(module))
    assert found, f"{name} has a `>>>` that doctest does not find"
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0, "see the report of doctest above"


@pytest.mark.parametrize("name", packages())
def test_every_public_class_has_an_example(name):
    package = importlib.import_module(name)
    submodules = {info.name for info in pkgutil.iter_modules(package.__path__)}
    public = [(member, getattr(package, member)) for member in package.__all__ if member not in submodules]
    classes = [
        (member, value)
        for member, value in public
        if inspect.isclass(value) and not inspect.isabstract(value) and not getattr(value, "_is_protocol", False)
    ]
    missing = [
        member for member, value in classes if not issubclass(value, Exception) and ">>> " not in (value.__doc__ or "")
    ]
    assert missing == []
