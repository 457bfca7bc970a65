"""The cost of importing the package, and that its lazy names exist."""

import importlib
import statistics
import subprocess
import sys

import pytest

PUBLIC = ("losses", "networks")
SCRIPT = """
import sys, time
start = time.perf_counter()
import nnunet_invariance, nnunet_invariance.losses, nnunet_invariance.networks
print(time.perf_counter() - start, "torch" in sys.modules, "nnunetv2" in sys.modules)
"""


def test_importing_the_package_takes_less_than_50_ms_and_loads_neither_torch_nor_nnunet():
    runs = [
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    assert {tuple(run[1:]) for run in runs} == {("False", "False")}
    assert statistics.median(float(run[0]) for run in runs) < 0.05


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name):
    package = importlib.import_module(f"nnunet_invariance.{name}")
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public).__doc__, public
        assert public in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'PatchInfoNCF'"):
        package.PatchInfoNCF  # noqa: B018
