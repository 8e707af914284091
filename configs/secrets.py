"""What may hold a secret, and how it is written where people or files see it.

A secret can stand in the user part of a URL, in its query (a presigned link), or in `storage_options`. None of these
is ever written: not into logs, error texts, keys, manifests or reports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/@'\"<>]*@)*(?P<rest>[^\s?#'\"<>]*)")
_QUERY = re.compile(r"(?P<url>https?://[^\s?'\"<>]*)\?[^\s'\"<>)\]]*")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|ya29\.[\w.-]{16,})")
_BEARER = re.compile(r"(?i)(\bauthorization\W{1,4}basic\s+|\bbearer\s+)[\w.~+/=-]{12,}")
_SECRET_KEY = re.compile(r"(?i)api_key|secret|passw|access_key")
_SECRET_OPTION = re.compile(r"(?i)secret|token|passw|credential|private|account_key|sas|(^|_)key($|_(?!id$))|headers")
SIGNATURE = re.compile(
    r"(?i)(x-(amz|goog|ms)-|sig(nature)?=|se=|sp=|sv=|sr=|st=|expires|awsaccesskeyid|access_?token|token|api_?key|key=)"
)
"""How the parameters of a URL begin that sign it, and are not of its content."""
_OPTIONS = ("storage_options", "base_model_storage_options", "artifact_store_options")


def redacted(text: str) -> str:
    """Return a text without user parts and queries of URLs, and without what looks like a token.

    >>> redacted("GET https://me:pw@host/a.jsonl?X-Amz-Signature=0f failed")
    'GET https://host/a.jsonl?... failed'
    """
    text = _URL.sub(r"\g<scheme>\g<rest>", text)
    text = _QUERY.sub(r"\g<url>?...", text)
    return _BEARER.sub(r"\1***", _TOKEN.sub("***", text))


def holds_secret(path: Sequence[str | int], value: object) -> bool:
    """Return whether the value of a key may hold a secret: by its name, or as a part of storage options.

    >>> holds_secret(["datasets", 0, "storage_options", "token"], "x"), holds_secret(["seed"], 1)
    (True, False)
    """
    names = [part for part in path if isinstance(part, str)]
    if not names:
        return False
    if any(name in _OPTIONS for name in names):
        return isinstance(value, dict | list) or bool(_SECRET_OPTION.search(names[-1]))
    return bool(_SECRET_KEY.search(names[-1]))


def signed(text: str) -> bool:
    """Return whether a text holds a URL with a user part or a signature.

    >>> signed("https://host/a?download=true"), signed("s3://me:pw@bucket/a"), signed("https://host/a?sig=0f")
    (False, True, True)
    """
    bare = _QUERY.sub(r"\g<url>", text)
    queries = [part for query in _QUERY.finditer(text) for part in query[0].partition("?")[2].split("&")]
    return redacted(bare) != bare or any(SIGNATURE.match(part) for part in queries)
