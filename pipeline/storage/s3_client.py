"""A client of an S3 bucket: obstore signs the requests, and HttpClient sends them without following redirects."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from pipeline.errors import StoreError
from pipeline.storage.http_client import HttpClient, Patience

# Settings of obstore that are headers: encryption with a key of one's own, who pays, checksums.
HEADERS = (
    *("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED", "AWS_SSE_CUSTOMER_KEY_BASE64"),
    *("AWS_REQUEST_PAYER", "AWS_CHECKSUM_ALGORITHM"),
)
LIFETIME = timedelta(hours=1)  # of a signature
SINGLE = 64 << 20  # bytes of the largest object that is written in one request


class S3Client:
    """The operations of obstore's client that this project uses. `store`: obstore's, for signatures and large objects.

    anonymous: send requests without a signature.
    """

    def __init__(self, url: str, store: Any, patience: Patience, anonymous: bool, allow_http: bool) -> None:
        self._url, self._store, self._anonymous, self._allow_http = url, store, anonymous, allow_http
        self._http = HttpClient(url, self._address, patience)

    def _address(self, method: str, key: str) -> str:
        """Return the signed URL of a request. Raise StoreError where it would travel in plain text unasked."""
        import obstore

        address = str(obstore.sign(self._store, method, key, LIFETIME))  # type: ignore[call-overload]
        if address.startswith("http://") and not self._allow_http:
            raise StoreError(
                f"{self._url}/{key}: plain http is not allowed; set AWS_ALLOW_HTTP=true, or cache.store "
                "endpoint='http://...'"
            )
        return address.partition("?")[0] if self._anonymous else address

    def _client(self, key: str) -> Any:
        """Return the client for a request. If it needs headers that obstore adds, its key must not redirect."""
        if not any(os.environ.get(name) for name in HEADERS):
            return self._http
        self._http.require_no_redirect(key)
        return self._store

    def head(self, key: str) -> dict[str, Any]:
        return dict(self._client(key).head(key))

    def get(self, key: str, options: Mapping[str, Any] | None = None) -> Any:
        return self._client(key).get(key, options=options)

    def delete(self, key: str) -> None:
        self._client(key).delete(key)

    def put(self, key: str, content: Any, mode: Any = "overwrite", **settings: Any) -> dict[str, Any]:
        """Write bytes or an open file. obstore sends a large file in parts, once its key is known not to redirect."""
        data = content if isinstance(content, bytes) else content.read(SINGLE + 1)
        if len(data) <= SINGLE and self._client(key) is self._http:
            return {"e_tag": self._http.put(key, data, mode)}
        if not isinstance(content, bytes):
            content.seek(0)
        self._http.require_no_redirect(key)
        return dict(self._store.put(key, content, mode=mode, **settings))

    def list(self, *given: Any) -> Any:
        return self._store.list(*given)


def make_signer(make: Callable[..., Any], config: dict[str, Any]) -> tuple[Any, bool]:
    """Return a store that signs, and whether it has no credentials, because `config` asks for requests without any."""
    if not config.get("skip_signature"):
        return make(config), False
    return make({**config, "skip_signature": False, "access_key_id": "none", "secret_access_key": "none"}), True
