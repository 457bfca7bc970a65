"""The packages of docs/architecture.md: a package imports only from packages above it in the table."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"plans": "plans", "trainers": "trainers"}  # shipped as sub-packages


def packages() -> list[str]:
    """Names of the packages below ``nnunet_invariance``, in the order of the table."""
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(?:nnunet_invariance/)?(\w+?)(?:\.py|/)` ", page, re.M)
    assert {"errors", "losses", "weights", "pretraining", "plans", "diffusion", "trainers", "cli"} <= set(rows)
    return rows


def imported_packages(file: Path) -> set[str]:
    """Packages that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("nnunet_invariance.")}


def test_packages_import_only_from_packages_above():
    order = packages()
    found = []
    for index, package in enumerate(order):
        place = ROOT / package if package in FOLDERS else ROOT / "nnunet_invariance" / package
        files = sorted(place.glob("**/*.py")) if place.is_dir() else [place.with_suffix(".py")]
        assert files, package
        allowed = {*order[: index + 1]}
        for file in files:
            above = {r for r in imported_packages(file) if r in order and r not in allowed}
            found += [f"{file.relative_to(ROOT)} imports {r}" for r in sorted(above)]
    assert found == []


def test_only_one_file_imports_the_packages_of_the_diffusion_extra():
    for file in [*ROOT.glob("nnunet_invariance/**/*.py"), *ROOT.glob("trainers/*.py"), *ROOT.glob("plans/*.py")]:
        found = re.findall(r"^\s*(?:from|import) (?:diffusers|transformers|accelerate)\b", file.read_text(), re.M)
        assert not found or file == ROOT / "nnunet_invariance/diffusion/packages.py", file
        assert "diffusion.packages" not in file.read_text() or file.parent.name == "diffusion", file


def test_losses_know_nothing_of_nnunet():
    for file in (ROOT / "nnunet_invariance/losses").glob("*.py"):
        assert "nnunetv2" not in file.read_text(), file


def test_no_test_module_imports_another():
    found = []
    for file in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong = [m for m in modules if re.search(r"(^|\.)(test_\w+|conftest)$", m)]
            found += [f"{file.relative_to(ROOT)} imports {m}; move shared code to tests/helpers/" for m in wrong]
        text = file.read_text(encoding="utf-8")
        found += [
            f"{file.relative_to(ROOT)} names {m}" for m in re.findall(r"from (tests\.[\w.]*test_\w+) import", text)
        ]
    assert found == []


def test_no_test_module_redefines_a_shared_fixture():
    shared = fixtures(ROOT / "tests/conftest.py")
    assert {"tiny", "results", "device"} <= shared
    found = {file.name: names for file in ROOT.glob("tests/**/test_*.py") if (names := fixtures(file) & shared)}
    assert found == {}


def fixtures(file: Path) -> set[str]:
    """Names of the fixtures that a file defines."""
    return {
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(d) for d in node.decorator_list)
    }
