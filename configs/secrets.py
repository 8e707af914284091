"""What may hold a secret, and how it is written where people or files see it.

A secret can stand in the user part of a URL, in its query (a presigned link), or in `storage_options`. None of these
is ever written: not into logs, error texts, keys, manifests or reports.
"""

from __future__ import annotations

import re

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/@'\"<>]*@)*(?P<rest>[^\s?#'\"<>]*)")
_QUERY = re.compile(r"(?P<url>https?://[^\s?'\"<>]*)\?[^\s'\"<>)\]]*")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|ya29\.[\w.-]{16,})")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_SECRET_OPTION = re.compile(r"(?i)secret|token|passw|credential|private|account_key|sas|(^|_)key($|_(?!id$))|headers")


def redacted(text: str) -> str:
    """Return a text without user parts and queries of URLs, and without what looks like a token.

    >>> redacted("GET https://me:pw@host/a.jsonl?X-Amz-Signature=0f failed")
    'GET https://host/a.jsonl?... failed'
    """
    text = _URL.sub(r"\g<scheme>\g<rest>", text)
    text = _QUERY.sub(r"\g<url>?...", text)
    return _BEARER.sub(r"\1 ***", _TOKEN.sub("***", text))


def is_secret_option(name: str) -> bool:
    """Return whether an option of a storage client is a secret by its name.

    >>> is_secret_option("aws_secret_access_key"), is_secret_option("endpoint_url")
    (True, False)
    """
    return bool(_SECRET_OPTION.search(name))
