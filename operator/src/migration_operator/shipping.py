"""What the two agents of one migration are told about their checkpoint's way: above all its key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from pydantic import SecretStr

from migration_api.wire import KEY_BYTES, Shipping

_SEED = os.urandom(KEY_BYTES)
"""Of this process: no key outlives it. An operator that restarts between its two requests makes another key, the target
refuses the first chunk, and the source goes on."""


def shipping(uid: str) -> Shipping:
    """Return what both agents of a migration get."""
    key = hmac.new(_SEED, uid.encode(), hashlib.sha256).digest()
    return Shipping(key=SecretStr(base64.b64encode(key).decode()))
