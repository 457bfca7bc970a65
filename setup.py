"""Maps the top-level folders `trainers/` and `plans/` into the package; pyproject.toml holds everything else."""

from setuptools import find_packages, setup

beside = find_packages(include=["trainers", "trainers.*", "plans", "plans.*"])
# Folders of data files, without __init__.py.
data = ["nnunet_invariance._ext_trainers", "nnunet_invariance.weights.shipped"]

setup(
    packages=find_packages(include=["nnunet_invariance", "nnunet_invariance.*"])
    + [f"nnunet_invariance.{package}" for package in beside]
    + data,
    package_dir={
        "nnunet_invariance": "nnunet_invariance",
        "nnunet_invariance.trainers": "trainers",
        "nnunet_invariance.plans": "plans",
    },
    package_data={"nnunet_invariance": ["py.typed", "_ext_trainers/*.py", "weights/shipped/*"]},
)
