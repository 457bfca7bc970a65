"""One model folder for all tests of prediction."""

from pathlib import Path

import pytest

from tests.helpers.tiny_models import write_model


@pytest.fixture(scope="session")
def tiny_model(tiny, tmp_path_factory) -> Path:
    """Folder of an untrained model of one fold."""
    return write_model(tiny, tmp_path_factory.mktemp("models"))
