"""Translate obstore's exceptions into one-line errors that say what is wrong and what to do.

The messages never contain obstore's own text, because a server's answer may quote keys. obstore is imported only after
one of its exceptions was raised.
"""

from __future__ import annotations

from pipeline.errors import StoreError


def is_interrupted_body(error: BaseException) -> bool:
    """Return whether the connection ended inside a body, so that another request may succeed."""
    from obstore.exceptions import GenericError

    return isinstance(error, GenericError) and "body error" in str(error)


def translate_error(error: BaseException, where: str, url: str) -> BaseException:
    """Return the exception to raise for one of obstore's. Other exceptions are returned unchanged.

    `where`: URL of the object. `url`: URL of its bucket or host.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    if isinstance(error, FileNotFoundError):
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            return StoreError(f"{where}: no such bucket {url}; create it first")
        return FileNotFoundError(2, "no such object", where)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return FileExistsError(17, "another process wrote it first", where)
    if isinstance(
        error, BaseError | ValueError | OverflowError
    ):  # ValueError, OverflowError: values that obstore rejects
        return StoreError(f"{where}: {explain(error, url)}")
    if type(error).__name__ == "PanicException":
        return StoreError(f"{where}: obstore failed to start; check the addresses in the environment")
    return error


def explain(error: Exception, url: str) -> str:
    """Return the reason of an obstore error and what to do about it."""
    text = f"{type(error).__name__}: {error}"
    for words, explanation in REASONS:
        if any(word in text for word in words):
            return explanation
    status = text.partition("status code: ")[2][:3]
    if status.isdigit():
        return f"HTTP status {status} from the server after all retries; try again later"
    return f"{url} cannot be used ({type(error).__name__}); check URL, endpoint and credentials"


# Words of obstore's text, and the explanation of the first row that matches.
REASONS = (
    (
        ("169.254.169.254", "metadata.google", "MissingAccount"),
        "no credentials or account in the environment; set them as obstore documents",
    ),
    (
        ("PermissionDenied", "Unauthenticated", "403 Forbidden"),
        "forbidden; check the credentials in the environment. A store that does not allow listing also answers this "
        "for a missing object; allow listing to distinguish the two",
    ),
    (
        ("Range request not supported",),
        "this server does not support range requests; use one that does, or copy the cache to this machine",
    ),
    (
        ("NotImplemented", "NotSupported", "status code: 501"),
        "this store does not support conditional put; use another store",
    ),
    (("dns error",), "no such host; check the URL and the endpoint"),
    (("BadScheme",), "plain http is not allowed; set AWS_ALLOW_HTTP=true, or cache.store endpoint='http://...'"),
    (("kind: Timeout", "TimedOut"), "timed out after all retries; check that the server is running"),
    (("ConnectionRefused",), "connection refused after all retries; check that the server is running"),
    (("kind: Connect",), "no connection after all retries; check that the server is running"),
    (("kind: Request", "body error"), "connection interrupted after all retries; check that the server is running"),
)
