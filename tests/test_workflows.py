"""The workflows, issue forms and hooks are valid, and agree with pyproject.toml and the Makefile."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(file for file in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if file.name != "config.yml")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def requirement(name: str) -> Requirement:
    return next(r for line in PROJECT["dependencies"] if (r := Requirement(line)).name == name)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_has_the_keys_that_github_needs(file):
    workflow = load(file)
    assert workflow["name"]
    assert workflow[True]  # YAML 1.1 reads the key `on` as true
    for name, job in workflow["jobs"].items():
        assert {"runs-on", "steps"} <= set(job), name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step.get("uses", "actions/checkout@v4"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_command_of_a_workflow_exists(file):
    text = "\n".join(step.get("run", "") for step in steps(load(file)))
    called = set(re.findall(r"\bmake ([\w-]+)", text))
    assert called
    assert called <= TARGETS
    for path in re.findall(r"\$GITHUB_WORKSPACE/([\w./-]+)", text):
        assert (ROOT / path).is_file(), path


def test_the_matrix_covers_the_supported_versions():
    matrix = load(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    jobs = [
        {"os": "ubuntu-latest", "python": p, "nnunet": n, "torch": t}
        for p in matrix["python"]
        for n in matrix["nnunet"]
        for t in matrix["torch"]
    ] + matrix["include"]
    declared = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert {job["python"] for job in jobs} == set(declared)
    assert PROJECT["requires-python"] == f">={min(declared, key=Version)}"
    assert {job["os"] for job in jobs} == {"ubuntu-latest", "macos-latest"}
    assert {"torch", "torch==2.6.*"} == {job["torch"] for job in jobs}
    oldest = min(spec.version for spec in requirement("torch").specifier if spec.operator == ">=")
    assert oldest == "2.6"
    nnunet = {job["nnunet"] for job in jobs}
    assert any(name.endswith("@master") for name in nnunet)
    exact = {name.removeprefix("nnunetv2==") for name in nnunet if "==" in name}
    assert exact == {"2.8.0", "2.8.1"}
    assert all(requirement("nnunetv2").specifier.contains(version) for version in exact)


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_an_issue_form_is_one_that_github_accepts(file):
    form = load(file)
    assert {"name", "description", "body"} <= set(form)
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    identifiers = []
    for field in form["body"]:
        assert field["type"] in kinds
        if field["type"] != "markdown":
            assert field["attributes"]["label"]
            identifiers.append(field["id"])
    assert identifiers
    assert len(identifiers) == len(set(identifiers))


def test_the_hooks_are_those_of_make_lint():
    repos = load(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert {"ruff", "ruff-format", "check-yaml", "trailing-whitespace"} <= set(hooks)
    assert all(repo["repo"] == "local" or re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"]) for repo in repos)
    lint = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "ruff check ." in lint
    assert "ruff format --check ." in lint


def test_make_targets_that_pages_name_exist():
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([\w-]+)", (ROOT / page).read_text(encoding="utf-8")))
        assert named, page
        assert named <= TARGETS, page
