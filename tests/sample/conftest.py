"""The folder of the tiny model that the tests of the pipeline use."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A saved tiny pipeline."""
    path = Path(__file__).parents[1] / "pipeline" / "conftest.py"
    spec = spec_from_file_location("tiny_pipeline", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    module.new_pipe().save_pretrained(folder)
    return folder
