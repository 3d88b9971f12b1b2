"""In CI everything is installed, so a skipped test is a failed one."""

from __future__ import annotations

import os

import pytest

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _skipped and session.exitstatus == 0:
        print(f"\nskipped in CI, where nothing may be: {', '.join(sorted(set(_skipped)))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
