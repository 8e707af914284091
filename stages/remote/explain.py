"""What a store's client raised, as a sentence without the client's own text of requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.errors import SftError, StageError, TransientError
from stages.remote.failures import NEVER_PASSES, ChangedError, can_pass, is_of_a_client, said, status_of


class PlaceProblemError(Exception):
    """A place cannot be used as the configuration names it: `rule` and `remedy` say why and what to do."""

    def __init__(self, rule: str, remedy: str) -> None:
        self.rule, self.remedy = rule, remedy
        super().__init__(f"{rule}. {remedy}")


@contextmanager
def explained(shown: str) -> Iterator[None]:
    """Turn what a store's client raises into our errors; `shown` names the place, without secrets.

    The cause is not attached: tracebacks are logged, and requests hold secrets.

    Raises:
        PlaceProblemError: it is not there, or may not be read.
        TransientError: it changed while it was read, or the store does not answer.
        StageError: this machine's disk is full.
    """
    try:
        yield
    except (SftError, PlaceProblemError):
        raise
    except Exception as error:
        found = _explain(shown, error)
        if found is None:
            raise
        raise found from None


def _explain(shown: str, error: Exception) -> Exception | None:
    """Return our error; None for one that is no client's."""
    if isinstance(error, ChangedError):
        return TransientError(f"{shown} changed while it was read: {error}. Start again to read it as it is now.")
    if isinstance(error, TypeError) and "keyword argument" in str(error):
        rule = f"the client of {shown} does not take these storage_options: {error}"
        return PlaceProblemError(rule, "Check their names.")
    if can_pass(error):
        return TransientError(
            f"{shown}: {said(error)}. It was asked again for a while; start again to continue where it was."
        )
    if getattr(error, "errno", None) in NEVER_PASSES:
        remedy = "Free space, or set XDG_CACHE_HOME to another disk; what came so far is kept."
        return StageError(f"{shown}: its copy on this machine cannot be written ({said(error)}). {remedy}")
    if isinstance(error, FileNotFoundError):
        return PlaceProblemError(f"there is nothing at {shown}", "Check the URL, and that this account may list it.")
    if not is_of_a_client(error) and not isinstance(error, OSError):
        return None
    refused = f" (status {status_of(error)})" if status_of(error) else ""
    return PlaceProblemError(
        f"{shown} cannot be read{refused}: {said(error)}",
        "Check credentials, profile, endpoint_url and region (environment or storage_options); for a public place set "
        "storage_options.anonymous: true.",
    )
