"""Where a journal is sent, as a user writes it: one line of text becomes a `Target`, or is refused with what to do.

    -                                       standard output of the command that stays with the run
    file:PATH                               a file of lines
    redis://HOST:PORT/DB  rediss://...      a stream of Redis
    https://HOST/PATH  http://127.0.0.1/... a web hook
    tensorboard:[PATH]  wandb:[PATH]        a folder of curves; without a path, in the run's own or beside the runs
    mlflow:TRACKING_URI                     a tracking store
    prometheus://127.0.0.1:PORT             a page of numbers, served here

Options stand behind a `?`. A secret never stands in such a line, which is written into the plan: it is named by an
environment variable or a file. Words only: what is sent, and how, is the business of trn.sinks.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from trn.errors import UsageError

__all__ = [
    "Target",
    "absolute_target",
    "is_loopback",
    "is_secret_parameter",
    "names_user",
    "parse_target",
    "secret_parameters",
]


@dataclass(frozen=True)
class Target:
    """One place to send to. `url` has neither options nor secrets; `text` is the line it was read from."""

    kind: str
    url: str
    options: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def digest(self) -> str:
        """Short, the same for the same place: options that only say how to send do not count."""
        place = [self.kind, self.url, *(f"{name}={self.options.get(name, '')}" for name in _PLACE_OPTIONS)]
        return hashlib.sha256("\0".join(place).encode()).hexdigest()[:16]

    @property
    def path(self) -> str:
        """Of `file:`, `tensorboard:`, `wandb:` and `mlflow:`, what follows the colon; "" where nothing does."""
        return self.url.partition(":")[2]


_CONNECTION = ("username", "password_env", "password_file")
_HOOK = ("token_env", "token_file", "secret_env", "secret_file")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "stdout": (),
    "file": (),
    "redis": ("stream", "maxlen", *_CONNECTION),
    "webhook": _HOOK,
    "tensorboard": (),
    "wandb": ("project",),
    "mlflow": ("experiment", *_CONNECTION, "token_env", "token_file"),
    "prometheus": (),
}
"""What may stand behind the `?` of each kind; of a web hook any other parameter is the receiver's own."""

_SCHEMES: Mapping[str, str] = {
    "file": "file",
    "redis": "redis",
    "rediss": "redis",
    "https": "webhook",
    "http": "webhook",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "prometheus": "prometheus",
}
_OF_FOLDERS = ("file", "tensorboard", "wandb", "mlflow")
"""Kinds whose URL is a scheme and a path."""

_PLACE_OPTIONS = ("stream", "experiment", "project")
_AZURE = frozenset({"abfs", "abfss", "az"})
_SECRET_PARAMETER = re.compile(
    r"(?:.*[_.-])?(?:auth|authorization|bearer|code|jwt|key|pass|pat|pwd|sig)|"
    r".*(?:apikey|credentials?|passphrase|passwd|password|secret|signature|token)",
    re.IGNORECASE,
)


def parse_target(text: str) -> Target:
    """The target that `text` names. Raises UsageError: unknown kind or option, a secret, an unsafe address."""
    if text == "-":
        return Target("stdout", "-", {}, text)
    scheme, colon, _ = text.partition(":")
    kind = _SCHEMES.get(scheme.lower()) if colon else None
    if kind is None or not text.isprintable():
        raise _refused(text, f"- or an address beginning with {', '.join(f'{name}:' for name in _SCHEMES)}")
    if kind in _OF_FOLDERS:
        return _of_folder(kind, text)
    return _of_host(kind, text)


def _of_folder(kind: str, text: str) -> Target:
    head, _, query = text.partition("?")
    scheme, _, path = head.partition(":")
    if kind == "file":
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.strip("/ ") or path.startswith("//"):
            raise _refused(text, "the path of a file after the colon, as in file:events.jsonl")
    if kind == "mlflow":
        if not path:
            raise _refused(text, "a tracking URI after the colon, as in mlflow:sqlite:///mlflow.db")
        _refuse_user(text, path)
    return Target(kind, f"{scheme.lower()}:{path}", _options(kind, text, query), text)


def _of_host(kind: str, text: str) -> Target:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _refused(text, f"an address ({str(error).lower()})") from None
    if not parts.hostname:
        raise _refused(text, f"a host after {parts.scheme}://")
    _refuse_user(text, text)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise _refused(text, "https:, as anybody could read and change it on the way to another machine")
    if kind == "prometheus" and (port is None or not is_loopback(parts.hostname)):
        raise _refused(text, "an address of this machine and a port, as in prometheus://127.0.0.1:9400")
    if kind == "redis" and not (parts.path in ("", "/") or parts.path[1:].isdecimal()):
        raise _refused(text, "the number of a database after the slash, as in redis://127.0.0.1:6379/0")
    options = _options(kind, text, parts.query)
    theirs = [(name, value) for name, value in _parameters(text, parts.query) if name not in _OPTIONS[kind]]
    return Target(kind, _without(parts, urlencode(theirs) if kind == "webhook" else ""), options, text)


def _without(parts: SplitResult, query: str) -> str:
    return parts._replace(scheme=parts.scheme.lower(), query=query, fragment="").geturl()


def _options(kind: str, text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in _parameters(text, query):
        if is_secret_parameter(name) and name not in _OPTIONS[kind]:
            raise _secret(text, f"{name}=")
        if name not in _OPTIONS[kind]:
            if kind == "webhook":
                continue
            known = ", ".join(_OPTIONS[kind]) or "none"
            raise _refused(text, f"no option {name!r} (there is: {known})")
        if not value or name in options:
            raise _refused(text, f"one value for the option {name!r}")
        if name == "maxlen" and not (value.isdecimal() and 0 < int(value) < 2**53):
            raise _refused(text, "a whole number from 1 for maxlen")
        options[name] = value
    for stem in ("password", "token", "secret"):
        if f"{stem}_env" in options and f"{stem}_file" in options:
            raise _refused(text, f"one of {stem}_env and {stem}_file")
    return options


def _parameters(text: str, query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise _refused(text, "NAME=VALUE with & between them after the question mark") from None


def _refuse_user(text: str, url: str) -> None:
    """No one's name or password stands before the host."""
    authority = url.partition("://")[2].partition("?")[0].partition("#")[0]
    if "@" in authority.partition("/")[0] or ("@" in authority and ":" in authority.partition("@")[0]):
        raise _secret(text, "what stands before the @")


def is_secret_parameter(name: str) -> bool:
    """Whether what stands behind this name in a URL is to be taken for a secret."""
    return _SECRET_PARAMETER.fullmatch(name) is not None


def secret_parameters(query: str) -> list[str]:
    """The names in a query behind which a secret seems to stand."""
    pairs = parse_qsl(query.replace(";", "&"), keep_blank_values=True)
    return [name for name, _ in pairs if is_secret_parameter(name)]


def names_user(scheme: str, netloc: str) -> bool:
    """Whether somebody's name or password stands before a host. In a store of Azure, container@account is a place."""
    before, at, _ = netloc.rpartition("@")
    return bool(at) and not (scheme.lower() in _AZURE and before and not re.search("[:@]", before))


def is_loopback(host: str) -> bool:
    """Whether a host, without port or brackets, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(text: str, expected: str) -> UsageError:
    return UsageError(f"expected {expected}, found {_shown(text)}.", where="events", hint="docs/sinks.md has them all.")


def _secret(text: str, what: str) -> UsageError:
    return UsageError(
        f"expected no secret in a line that is written down, and {what} of {_shown(text)} looks like one.",
        where="events",
        hint="Put it into an environment variable or a file, and name that: username=, and password_env=NAME or "
        "password_file=PATH, for Redis and MLflow; token_env= and secret_env= for a web hook.",
    )


def _shown(text: str) -> str:
    """As much of it as can be no secret: neither its options nor what stands before an @."""
    head = text.partition("?")[0]
    if "@" in head:
        head = f"...@{head.rpartition('@')[2]}"
    return repr(head if len(head) <= 100 else head[:97] + "...")


def absolute_target(text: str, folder: str) -> str:
    """`text` with its paths, where it has relative ones, taken from `folder`; what cannot be read stays as it is."""
    head, mark, query = text.partition("?")
    scheme, colon, path = head.partition(":")
    if colon and path and _SCHEMES.get(scheme.lower()) in _OF_FOLDERS:
        head = f"{scheme}:{_absolute_path(path, folder)}"
    return head + mark + "&".join(_absolute_option(option, folder) for option in query.split("&"))


def _absolute_path(path: str, folder: str) -> str:
    database, slashes, file = path.partition(":///")
    if slashes and database.startswith("sqlite"):  # which counts a third slash as no part of the path
        return f"{database}:///{os.path.join(folder, file)}"
    return path if ":" in path else os.path.join(folder, path)


def _absolute_option(option: str, folder: str) -> str:
    name, equals, value = option.partition("=")
    if not equals or not value or not name.endswith("_file"):
        return option
    return urlencode({name: os.path.join(folder, unquote(value))}, safe="/")
