"""Leases of the tests' own; and in CI everything is installed, so a skipped test is a failed one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

_skipped: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def leases_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests lease is leased among themselves: never in the machine's folder, where real jobs hold devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRN_LEASES_DIR", str(tmp_path_factory.mktemp("leases")))
        yield


@pytest.fixture(autouse=True)
def variables_of_trn() -> Iterator[None]:
    """A command tells its children by variables what it was asked; called in a test, it must not tell other tests."""
    before = _variables()
    yield
    for name in _variables().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("TRN_")}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _skipped and session.exitstatus == 0:
        print(f"\nskipped in CI, where nothing may be: {', '.join(sorted(set(_skipped)))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
