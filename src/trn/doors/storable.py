"""What of a submission may be written down, or shown: its request lies in a file until the job has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trn.errors import SpecError, UsageError

__all__ = ["check_storable", "storable", "without_secrets"]


def check_storable(words: Sequence[str]) -> None:
    """Refuse words of a command line that may hold a secret, or are no text. Raises UsageError."""
    from trn.provenance.redact import redact  # heavy: only to submit

    for text in words:
        if not _is_text(text):
            raise UsageError(f"{text!r} is not UTF-8 text.", where="command line", hint="Rename it.")
    changed = [shown for given, shown in zip(words, redact.argv(words), strict=True) if given != shown]
    if changed:
        raise UsageError(
            f"{changed[0]} holds what may be a secret, and the job is stored until it has ended.",
            where="command line",
            hint="Name a file or a variable that holds it.",
        )


def storable(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables that may be stored, and the names of those that may not: secrets by name or shape, and no text."""
    from trn.provenance.redact import redact  # heavy: only to submit
    from trn.provenance.secret_names import is_secret_name

    def is_storable(name: str, text: str) -> bool:
        return _is_text(text) and not is_secret_name(name) and redact.value(text) == text

    named = {name: text for name, text in environ.items() if _is_text(name)}
    stored = {name: text for name, text in named.items() if is_storable(name, text)}
    return stored, sorted(set(named) - set(stored))


def without_secrets(error: SpecError) -> SpecError:
    """The same problems; a value that is shown in one may be a token that was put into the wrong place."""
    from trn.provenance.process import process_redactor  # heavy: only to refuse

    words = process_redactor().words
    return SpecError([replace(one, path=words(one.path), message=words(one.message)) for one in error.problems])


def _is_text(text: str) -> bool:
    """Whether it can be written down: bytes that are no UTF-8 come in from the system as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
