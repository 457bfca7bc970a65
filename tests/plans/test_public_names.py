"""Public names of the packages plans and trainers."""

import subprocess
import sys

import pytest

import nnunet_invariance.plans
import nnunet_invariance.trainers


@pytest.mark.parametrize("package", [nnunet_invariance.plans, nnunet_invariance.trainers])
def test_every_public_name_can_be_imported(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'xyzzy'"):
        package.xyzzy  # noqa: B018


def test_importing_the_packages_imports_no_torch():
    code = "import sys, nnunet_invariance.plans, nnunet_invariance.trainers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
