"""The contents of the wheel; a checkout that is not installed and the installed wheel import the same."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from nnunet_invariance import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "nnunet_invariance": "nnunet_invariance",
    "trainers": "nnunet_invariance/trainers",
    "plans": "nnunet_invariance/plans",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built with this environment's setuptools in a copy of the checkout, which stays clean."""
    pytest.importorskip("setuptools", reason="builds without isolation, and so without the network")
    out = tmp_path_factory.mktemp("wheel")
    code = (
        "import os, sys; from setuptools import build_meta; "
        "print(build_meta.build_wheel(sys.argv[1], {'--build-option': ['build', '--build-base', sys.argv[2]]}))"
    )
    copy = tmp_path_factory.mktemp("checkout")
    tracked = ["setup.py", "pyproject.toml", "README.md", "LICENSE", *FOLDERS]
    subprocess.run(["cp", "-r", *(ROOT / name for name in tracked), copy], check=True)
    command = [sys.executable, "-c", code, str(out), str(out / "build")]
    environment = {**os.environ, "GITHUB_REPOSITORY": "owner/name"}
    built = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


@pytest.mark.integration
def test_the_wheel_contains_every_module_and_no_other_code(wheel):
    expected = {
        f"{target}/{file.relative_to(ROOT / source).as_posix()}"
        for source, target in FOLDERS.items()
        for file in (ROOT / source).rglob("*.py")
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "nnunet_invariance/_ext_trainers/nnunet_invariance_trainers.py" in names
    assert "nnunet_invariance/py.typed" in names
    assert any(name.endswith(".safetensors") for name in names)
    assert wheel.stat().st_size < 15_000_000


@pytest.mark.integration
def test_the_wheel_has_the_licence_entry_points_and_version(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"nnunet_invariance-{__version__}.dist-info"
    points = archive.read(f"{info}/entry_points.txt").decode()
    assert "[torch.backends]\nnnunet_invariance = nnunet_invariance._discovery:autoload" in points
    assert "nnunet-invariance = nnunet_invariance.cli.main:entry_point" in points
    text = archive.read(f"{info}/METADATA").decode()
    assert "Requires-Python: >=3.10\n" in text
    assert 'Requires-Dist: setuptools; python_version >= "3.12"' in text
    assert "Project-URL: Source, https://github.com/owner/name\n" in text
    assert "Project-URL: Documentation, https://owner.github.io/name/\n" in text
    assert "](https://raw.githubusercontent.com/owner/name/main/docs/pictures/before_after.png)" in text
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []  # the index has no other file of the repository
    licence = next(name for name in archive.namelist() if name.startswith(info) and name.endswith("LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.integration
@pytest.mark.parametrize("unpacked", [False, True], ids=["checkout", "wheel"])
def test_sub_packages_can_be_imported_in_another_folder(unpacked, wheel, tmp_path):
    """The flag -S hides site-packages, and with it an installed copy of this package."""
    path = ROOT
    if unpacked:
        path = tmp_path / "unpacked"
        zipfile.ZipFile(wheel).extractall(path)
    code = (
        "import nnunet_invariance, nnunet_invariance.trainers, nnunet_invariance.plans, nnunet_invariance._discovery\n"
        "print(nnunet_invariance.trainers.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    folder = path / "nnunet_invariance" / "trainers" if unpacked else ROOT / "trainers"
    assert result.stdout == f"{folder / '__init__.py'}\n", result.stderr


def test_versions_agree():
    assert metadata.version("nnunet_invariance") == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
