"""The `--golden` switch: rewrite the expected texts instead of comparing with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name, or write it there under --golden."""
    rewrite = request.config.getoption("--golden")

    def compare(name: str, text: str) -> None:
        file = GOLDEN / name
        if rewrite:
            file.write_text(text)
        assert file.exists(), f"no tests/golden/{name}; `make golden` writes it"
        assert text == file.read_text(), f"tests/golden/{name} differs; `make golden` rewrites it"

    return compare
