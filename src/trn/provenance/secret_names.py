"""Which names promise a secret: of keys, flags, variables and headers.

A name is cut into words (`hyperparams.apiKey`, `--hf-token`, `SLURM_JWT`), and the words decide. `token` is the hard
one, because this is a house of language models: `hf_token` is a secret, `pad_token`, `token_dim` and `tokens_seen` are
not. What only says where a secret lies (`token_file`, `password_env`) is no secret either.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

__all__ = ["is_reference_name", "is_secret_name"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_SECRET_WORDS = _words(
    "secret secrets password passwords passwd passphrase passphrases credential credentials authorization "
    "apikey apikeys accesskey secretkey privatekey signingkey authkey"
)
"""Secret wherever they stand in a name."""

_GLUED_ENDS = ("password", "passwd", "passphrase", "secret", "apikey", "authtoken", "accesstoken", "apitoken")
"""Ends of words that were written together: `PGPASSWORD`, `clientsecret`."""

_SECRET_PAIRS = frozenset(
    {
        *((first, last) for first in ("api", "access", "private", "secret", "signing") for last in ("key", "keys")),
        *((first, "key") for first in ("account", "auth", "deploy", "encryption", "license", "master", "session")),
        *((first, "key") for first in ("ssh", "storage", "subscription", "wandb", "webhook", "hmac")),
        *((first, "pat") for first in ("ado", "azure", "gh", "github", "gitlab")),
        *((first, "pass") for first in ("db", "ftp", "http", "login", "proxy", "redis", "smtp", "user")),
        ("connection", "string"),
        ("session", "id"),
    }
)
"""Secret where they stand side by side."""

_SECRET_ENDS = _words("token auth bearer cookie cookies jwt otp pwd session sessionid jsessionid")
"""Secret as the last word of a name."""

_TOKEN_OF_TEXT = _words(
    "pad eos bos unk sep cls mask special start begin end stop eot eod fim prefix suffix middle think image audio "
    "video text prompt response input output next last first previous single word sub per by each every "
    "max min num n total target valid extra added additional encoder decoder query class classification distillation "
    "register learned sentinel dummy blank"
)
"""Before `token`: a piece of text, not a key to something."""

_TOKENS_OF_ACCESS = _words(
    "access api auth bearer capability github gitlab hf id jwt oauth personal refresh secret service session"
)
"""Before `tokens`: keys to something; any other `tokens` are pieces of text."""

_HOLDERS = _words("value header plain raw base64 prod production staging old new primary backup")
"""Words after a secret word that still name the secret itself: `TOKEN_PROD`, `password_value`."""

_REFERENCES = _words("file files path paths dir directory folder env environ variable var name ref reference")
"""Last words that say where a secret lies, not what it is."""

_ABOUT = _words("algorithm count enabled expires expiry kind length manager policy provider required scheme ttl type")
"""Last words that tell something about a secret."""

_WORKING_FOLDERS = frozenset({"PWD", "OLDPWD"})


@lru_cache(maxsize=8192)
def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is to be hidden; each part of a dotted name is asked."""
    if name in _WORKING_FOLDERS:
        return False
    parts = [tuple(word.lower() for word in _WORD.findall(part)) for part in name.split(".")]
    if parts[-1] and parts[-1][-1] in _REFERENCES:
        return False
    return any(_are_secret(words) for words in parts)


def is_reference_name(name: str) -> bool:
    """Whether the last word of `name` says where something lies: `file`, `env`, `token_path`."""
    words = _WORD.findall(name)
    return bool(words) and words[-1].lower() in _REFERENCES


def _are_secret(words: tuple[str, ...]) -> bool:
    if not words or words[-1] in _REFERENCES or words[-1] in _ABOUT:
        return False
    if any(word in _SECRET_WORDS or word.endswith(_GLUED_ENDS) for word in words):
        return True
    if any(pair in _SECRET_PAIRS for pair in pairwise(words)):
        return True
    while len(words) > 1 and words[-1] in _HOLDERS:
        words = words[:-1]
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return before not in _TOKEN_OF_TEXT
    if words[-1] == "tokens":
        return before in _TOKENS_OF_ACCESS
    return words[-1] in _SECRET_ENDS
