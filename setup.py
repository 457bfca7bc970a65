"""Maps the top-level folders `trainers/` and `plans/` into the package, and adds the addresses of the repository.

pyproject.toml holds everything else.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

beside = find_packages(include=["trainers", "trainers.*", "plans", "plans.*"])
# Folders of data files, without __init__.py.
data = ["nnunet_invariance._ext_trainers", "nnunet_invariance.weights.shipped"]

readme = Path("README.md").read_text(encoding="utf-8")
links = {}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # OWNER/NAME, in a workflow
    owner, _, name = repository.partition("/")
    source = f"https://github.com/{repository}"
    links = {
        "Source": source,
        "Documentation": f"https://{owner}.github.io/{name}/",
        "Changelog": f"{source}/blob/main/CHANGELOG.md",
        "Issues": f"{source}/issues",
    }
    # The package index shows the README without the files beside it.
    raw = f"https://raw.githubusercontent.com/{repository}/main/"
    readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{raw}", readme)
    readme = re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{source}/blob/main/", readme)

setup(
    project_urls=links,
    long_description=readme,
    long_description_content_type="text/markdown",
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
