"""The rules of the code that docs/architecture.md states: sizes, complexity, generic files and public names."""

import ast
import re
from pathlib import Path

import pytest

from nnunet_invariance.registry import METHODS

ROOT = Path(__file__).parents[1]
CODE = sorted(file for folder in ("nnunet_invariance", "trainers", "plans") for file in ROOT.glob(f"{folder}/**/*.py"))
BENCHMARKS = sorted(ROOT.glob("benchmarks/**/*.py"))
TESTS = sorted(ROOT.glob("tests/**/*.py"))
MOST_FUNCTION_LINES = 50
MOST_MODULE_LINES = 400
MOST_TEST_MODULE_LINES = 500
WORST_COMPLEXITY = 20  # radon grade C; grade D begins at 21
GENERIC = (
    "nnunet_invariance/common",
    "nnunet_invariance/evaluation",
    "nnunet_invariance/nnunet",
    "nnunet_invariance/pretraining/engine",
    "nnunet_invariance/weights",
    "trainers/pretrained.py",
    "trainers/auxiliary_loss.py",
    "trainers/dense_contrast.py",
)
NOT_GENERIC = (
    "nnunet_invariance/weights/importers",
    "nnunet_invariance/weights/shipped",
    "nnunet_invariance/weights/trusted_architecture.py",  # the allow-list of network classes by name
)
METHOD_NAMES = {entry.class_name.lower() for entry in METHODS} | {entry.name for entry in METHODS} | {"icmseg"}


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_functions_fit_on_a_screen():
    found = [
        f"{name(file)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for file in [*CODE, *BENCHMARKS]
        for node in ast.walk(tree(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno >= MOST_FUNCTION_LINES
    ]
    assert found == []


def test_json_and_csv_files_are_read_in_one_place():
    """A file that is read elsewhere is read without the checks that name its damage."""
    read = re.compile(r"json\.load\(|json\.loads\([^)\n]*read_(text|bytes)|csv\.(reader|DictReader)\(")
    own = ("nnunet_invariance/common/", "nnunet_invariance/evaluation/scoring/label_maps.py")
    found = [name(file) for file in CODE if not name(file).startswith(own) and read.search(file.read_text("utf-8"))]
    assert found == []


def test_modules_are_short():
    limits = [(file, MOST_MODULE_LINES) for file in [*CODE, *BENCHMARKS]]
    limits += [(file, MOST_TEST_MODULE_LINES) for file in TESTS]
    lengths = {name(file): len(file.read_text(encoding="utf-8").splitlines()) for file, _ in limits}
    assert {name(file): lengths[name(file)] for file, most in limits if lengths[name(file)] > most} == {}


def test_no_function_is_too_complex():
    radon = pytest.importorskip("radon.complexity")
    found = [
        f"{name(file)}:{block.lineno} {block.name}: {block.complexity}"
        for file in [*CODE, *BENCHMARKS]
        for block in radon.cc_visit(file.read_text(encoding="utf-8"))
        if block.complexity > WORST_COMPLEXITY
    ]
    assert found == []


def identifiers_and_strings(file: Path) -> list[str]:
    """Every name and every string of a module that is not a docstring, in lower case."""
    words = []
    nodes = list(ast.walk(tree(file)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.alias):
            words += [node.name, node.asname or ""]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            words.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            words.append(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.append(node.value)
    return [word.lower() for word in words]


def test_generic_files_name_no_method():
    names = "|".join(sorted(METHOD_NAMES))
    # "dense" is also a word of the field: dense tensors.
    pattern = re.compile(rf"(?<![a-z])({names})(?![a-z])(?!trainer)(?! tensor)")
    found = []
    for file in CODE:
        if name(file).startswith(GENERIC) and not name(file).startswith(NOT_GENERIC):
            named = {match for word in identifiers_and_strings(file) for match in pattern.findall(word)}
            found += [f"{name(file)} names {method}; ask nnunet_invariance.registry" for method in sorted(named)]
    assert found == []


def test_every_package_says_what_is_public():
    packages = [file for file in CODE if file.name == "__init__.py"]
    missing = [name(file) for file in packages if "__all__" not in file.read_text(encoding="utf-8")]
    assert missing == []


def test_messages_count_in_the_singular_and_the_plural():
    """``counted`` of common/wording.py writes "1 case" and "2 cases"; no text says "case(s)"."""
    found = [
        f"{name(file)}:{node.lineno} {node.value}"
        for file in CODE
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[a-z]\(e?s\)", node.value)
    ]
    assert found == []
