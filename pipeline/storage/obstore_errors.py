"""One line for what obstore raises: what is wrong and what to do.

Never obstore's own text, because a server's answer may quote keys. obstore is imported when one of its errors is there.
"""

from __future__ import annotations

from pipeline.errors import StoreError


def broke_off(error: BaseException) -> bool:
    """Whether the connection ended inside a body, so that another request may get all of it."""
    from obstore.exceptions import GenericError

    return isinstance(error, GenericError) and "body error" in str(error)


def translated(error: BaseException, where: str, url: str) -> BaseException:
    """The exception to raise for one of obstore's at `where`, in the bucket or host `url`; others as they are."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    if isinstance(error, FileNotFoundError):
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            return StoreError(f"{where}: no such bucket {url}; create it first")
        return FileNotFoundError(2, "no such object", where)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return FileExistsError(17, "another process was first", where)
    if isinstance(error, BaseError | ValueError | OverflowError):  # the last two: values that obstore rejects
        return StoreError(f"{where}: {reason(error, url)}")
    if type(error).__name__ == "PanicException":
        return StoreError(f"{where}: obstore gave up; is an address in the environment malformed?")
    return error


def reason(error: Exception, url: str) -> str:
    """The reason and the advice for an obstore error. Never its own text: a server's answer may quote keys."""
    text = f"{type(error).__name__}: {error}"
    for words, advice in REASONS:
        if any(word in text for word in words):
            return advice
    status = text.partition("status code: ")[2][:3]
    if status.isdigit():
        return f"the server answers with HTTP status {status}, also after retries; try again later"
    return f"{url} cannot be used ({type(error).__name__}); check URL, endpoint and credentials"


# Tried in this order: words of obstore's text, and the reason that is given.
REASONS = (
    (
        ("169.254.169.254", "metadata.google", "MissingAccount"),
        "no credentials or account in the environment; set them as obstore documents",
    ),
    (
        ("PermissionDenied", "Unauthenticated", "403 Forbidden"),
        "forbidden; check the credentials in the environment (without the right to list, a store also answers so for a "
        "missing object: allow listing)",
    ),
    (
        ("Range request not supported",),
        "this server does not serve byte ranges; use one that does, or copy the cache here",
    ),
    (
        ("NotImplemented", "NotSupported", "status code: 501"),
        "this store lacks a needed operation (conditional put); use another store",
    ),
    (("dns error",), "no such host; check the URL and the endpoint"),
    (("BadScheme",), "plain http is refused; set AWS_ALLOW_HTTP=true, or cache.store endpoint='http://...'"),
    (("kind: Timeout", "TimedOut"), "timed out, also after retries; is the server up?"),
    (("ConnectionRefused",), "connection refused, also after retries; is the server up?"),
    (("kind: Connect",), "no connection, also after retries; is the server up?"),
    (("kind: Request", "body error"), "the connection broke off, also after retries; is the server up?"),
)
