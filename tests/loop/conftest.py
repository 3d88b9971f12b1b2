"""One fork server for the tests of the loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.forkserver import ForkServer


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one
