"""Secrets that are known by how they look: tokens of well-known services, passwords in URLs, private keys.

The services publish these prefixes so that scanners find them. All patterns start at a boundary and have bounded
repeats, so that a long line costs time in proportion to its length.
"""

from __future__ import annotations

import re

__all__ = ["hide_shapes"]

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[pousr]_[A-Za-z0-9]{16,255}"
    r"|github_pat_[A-Za-z0-9_]{16,255}"
    r"|gl(?:pat|dt|rt|cbt|ptt|soat)-[\w.-]{16,255}"
    r"|hf_[A-Za-z0-9]{16,255}"
    r"|[srp]k_(?:live|test)_[A-Za-z0-9]{10,255}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,128}"
    r"|xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{8,255}"
    r"|xapp-[A-Za-z0-9-]{10,255}"
    r"|eyJ[\w-]{6,4096}\.eyJ[\w-]{6,8192}(?:\.[\w-]{0,4096})?"
    r"|AIza[\w-]{30,64}"
    r"|ya29\.[\w-]{20,512}"
    r"|GOCSPX-[\w-]{16,64}"
    r"|pypi-AgE[\w-]{16,512}"
    r"|npm_[A-Za-z0-9]{30,64}"
    r"|SG\.[\w-]{16,64}\.[\w-]{16,128}"
    r"|dapi[a-f0-9]{32}"
    r"|do[opr]_v1_[a-f0-9]{32,128}"
    r"|hv[sbr]\.[\w-]{20,512}"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{20,128}"
    r")"
)
_SK = re.compile(r"(?<![A-Za-z0-9])sk-[\w-]{16,512}")
_RANDOM_PART = re.compile(r"\d|[A-Za-z0-9]{16}")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)(?<![\w-])(bearer\s{1,8})[\w.~+/=-]{16,8192}")
_HOOK = re.compile(
    r"(hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot)"
    r"[^\s\"'<>]{1,512}"
)

_SCHEME = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,31}://"
_URL_PASSWORD = re.compile(
    rf"({_SCHEME}[^\s\"'/@:?#\[\]<>]{{0,256}}:)(?!\d{{1,5}}(?:[/?#\s\"',;)]|$))"
    r"(?:[^\s\"'<>/?#]{1,1024}|[^\s\"'<>]{1,1024})@"
)
_URL_USER = re.compile(r"(?i)(?<![A-Za-z0-9+.-])((?:https?|ftps?|wss?)://)[^\s\"'/@:?#\[\]<>]{1,512}@")
_BARE_PASSWORD = re.compile(
    r"(?<![\w./:@+-])([\w.+-]{1,64}:)[^\s:@/\"']{1,256}(@(?:(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}|localhost)(?![\w.-]))"
)
_URL_PARAMETER = re.compile(
    r"(?i)([?&](?:sig|signature|key|code|awsaccesskeyid|googleaccessid|key-pair-id"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^\s&#\"'<>]{1,4096}"
)


def hide_shapes(text: str, mask: str) -> str:
    """`text` with everything that looks like a secret replaced by `mask`."""
    if len(text) < 8:
        return text
    text = _TOKENS.sub(mask, text)
    if "sk-" in text:
        text = _SK.sub(lambda match: mask if _RANDOM_PART.search(match[0], 3) else match[0], text)
    if "-----BEGIN" in text:
        text = _PRIVATE_KEY.sub(mask, text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\g<1>{mask}@", text)
        text = _URL_USER.sub(rf"\g<1>{mask}@", text)
    if "=" in text:
        text = _URL_PARAMETER.sub(rf"\g<1>{mask}", text)
    if "@" in text:
        text = _BARE_PASSWORD.sub(rf"\g<1>{mask}\g<2>", text)
    text = _BEARER.sub(rf"\g<1>{mask}", text)
    return _HOOK.sub(rf"\g<1>{mask}", text)
