"""A tiny diffusion model for the tests of the diffusion package."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete tiny diffusion model; needs diffusers."""
    from tests.helpers.tiny_diffusion import write_model

    return write_model(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture
def base(model: Path):
    """The base model in that folder, opened."""
    from nnunet_invariance.diffusion.base_model import open_base

    return open_base(model)
