"""Ships `nnunet_invariance` with the top-level folders `trainers/` and `plans/` as its sub-packages."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "nnunet_invariance/__init__.py").read_text())[1]
beside = find_packages(include=["trainers", "trainers.*", "plans", "plans.*"])
diffusion = ["diffusers>=0.36", "transformers>=4.56", "accelerate>=1.10"]

setup(
    name="nnunet_invariance",
    version=version,
    description="Pre-training and trainers for nnU-Net v2 that learn invariant representations",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["nnunet_invariance", "nnunet_invariance.*"])
    + [f"nnunet_invariance.{package}" for package in beside],
    package_dir={
        "nnunet_invariance": "nnunet_invariance",
        "nnunet_invariance.trainers": "trainers",
        "nnunet_invariance.plans": "plans",
    },
    package_data={"nnunet_invariance": ["_ext_trainers/*.py", "weights/shipped/*"]},
    install_requires=[
        "torch>=2.6,!=2.9.*",
        "nnunetv2>=2.8,<3",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.2",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "acvl-utils>=0.2.6,<0.3",
        "SimpleITK>=2.2.1",
        "numpy>=1.24",
        "safetensors>=0.4.3",
        "tqdm",
        "matplotlib>=3.7",
        "packaging",
        "scikit-image>=0.19.3",
        "scipy>=1.11",
        "nibabel",
        "setuptools; python_version >= '3.12'",  # nnU-Net's preprocessing imports distutils
    ],
    extras_require={
        "hub": ["huggingface_hub>=0.24"],
        "registration": ["convexadam>=0.2,<0.3"],
        "evaluate": ["monai>=1.5"],  # NSD and HD95
        "swin": ["monai>=1.5"],  # SwinUNETR
        "slurm": ["submitit>=1.5"],
        "diffusion": diffusion,
        "test": [
            "pytest>=8",
            "pytest-cov>=6",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "mypy>=1.15",
            "ruff>=0.9",
            "convexadam>=0.2,<0.3",
            "monai>=1.5",
            *diffusion,
        ],
    },
    entry_points={
        "console_scripts": ["nnunet-invariance = nnunet_invariance.cli.main:entry_point"],
        "torch.backends": ["nnunet_invariance = nnunet_invariance._discovery:autoload"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
