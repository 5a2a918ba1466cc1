"""The sizes and keys that the documentation states are those of the networks."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def sizes():
    spec = importlib.util.spec_from_file_location("sizes", DOCS / "checkpoint_sizes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_memory(sizes):
    page = (DOCS / "checkpoints.md").read_text()
    for table in sizes.tables().split("\n\n"):
        assert table.strip() in page


def test_the_list_of_keys(sizes):
    assert sizes.page() == (DOCS / "safetensors_keys.md").read_text()
