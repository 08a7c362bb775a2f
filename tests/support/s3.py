"""Presigned S3 requests (AWS Signature Version 4), so that any HTTP client can be an S3 client."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote, urlencode, urlsplit

LIFETIME_SECONDS = 600


def presigned(method: str, path: str, variables: dict[str, str], now: datetime | None = None) -> str:
    """Return the URL of a request; `variables` are those that S3 clients read from the environment."""
    endpoint, region = variables["AWS_ENDPOINT_URL"], variables["AWS_REGION"]
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    query = urlencode(
        {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{variables['AWS_ACCESS_KEY_ID']}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": LIFETIME_SECONDS,
            "X-Amz-SignedHeaders": "host",
        },
        quote_via=quote,
        safe="",
    )
    host = urlsplit(endpoint).netloc
    request = "\n".join([method, quote(path), query, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{variables['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{endpoint}{quote(path)}?{query}&X-Amz-Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"
