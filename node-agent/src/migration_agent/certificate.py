"""This node's own certificate: self-signed, published in its MigrationNode, pinned by whoever talks to the agent."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from migration_agent.paths import write_durably

log = logging.getLogger(__name__)

VALID = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
_SKEW = timedelta(hours=1)
_COMMON_NAME_MAX = 64


def ensure_certificate(certificate: Path, key: Path, node: str, address: str, *, at: datetime | None = None) -> str:
    """Return the node's certificate in PEM; it is made anew when there is none that fits or it ends soon.

    Args:
        certificate: where the certificate is kept.
        key: where the private key is kept, readable by root alone.
        node: the node's name; peers learn it from the MigrationNode, here it is for people.
        address: the agent's IP address, for clients that check it.
        at: the present, for tests.
    """
    moment = at or datetime.now(UTC)
    kept = _usable(certificate, key, address, moment)
    if kept is not None:
        return kept
    log.info("a new certificate is made for node %s", node)
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:_COMMON_NAME_MAX])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _SKEW)
        .not_valid_after(moment + VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(node), x509.IPAddress(ip_address(address))]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # A crash between the two leaves a pair that does not match, which is made anew.
    write_durably(key, secret)
    pem = made.public_bytes(serialization.Encoding.PEM)
    write_durably(certificate, pem)
    return pem.decode("ascii")


def _usable(certificate: Path, key: Path, address: str, moment: datetime) -> str | None:
    """Return the kept certificate when it matches key and address and does not end soon."""
    try:
        pem = certificate.read_bytes()
        kept = x509.load_pem_x509_certificate(pem)
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        names = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        return None
    fits = (
        kept.not_valid_after_utc - moment > RENEW_BEFORE
        and kept.public_key() == private.public_key()
        and ip_address(address) in names.get_values_for_type(x509.IPAddress)
    )
    return pem.decode("ascii") if fits else None
