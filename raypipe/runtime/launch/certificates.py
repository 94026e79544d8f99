"""A throw-away authority and the one certificate that all nodes of a cluster share.

The data socket between replicas and the log node asks both sides for it. Whoever holds the node's
key belongs to the cluster, so the name in it is the cluster's, not a host's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from raypipe.errors import IntegrityError
from raypipe.runtime.worker.tls import NODE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

NODE_DAYS = 397
AUTHORITY_DAYS = 3_650
SKEW = timedelta(minutes=5)
"""How far back a certificate is valid: clocks of nodes differ."""


def new_key() -> bytes:
    """A P-256 key as PEM (PKCS 8, not encrypted)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def authority(key: bytes, now: datetime) -> bytes:
    """A certificate, as PEM, in which the key vouches for itself and may for nodes."""
    from cryptography import x509

    signer = _key(key)
    name = _name("raypipe cluster authority")
    builder = (
        _unsigned(name, name, signer, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _sign(builder, signer)


def node(key: bytes, ca_certificate: bytes, ca_key: bytes, now: datetime) -> bytes:
    """The nodes' certificate, as PEM, for servers and clients alike."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    signer, ca = _key(ca_key), _certificate(ca_certificate)
    builder = (
        _unsigned(_name(NODE), ca.subject, _key(key), now, NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([Use.SERVER_AUTH, Use.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NODE)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )
    return _sign(builder, signer)


def verify(certificate: bytes, key: bytes, ca_certificate: bytes, now: datetime) -> datetime:
    """When the nodes' certificate ends.

    Raises IntegrityError unless the key is its own, the authority signed it, it is valid now, and
    it is made out to NODE.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName

    found, ca = _certificate(certificate), _certificate(ca_certificate)
    if found.public_key() != _key(key).public_key():
        raise IntegrityError("node.key is not the key of node.crt")
    try:
        found.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as e:
        raise IntegrityError("node.crt is not signed by ca.crt") from e
    for name, each in (("ca.crt", ca), ("node.crt", found)):
        if not each.not_valid_before_utc <= now < each.not_valid_after_utc:
            raise IntegrityError(
                f"{name} is valid from {each.not_valid_before_utc:%Y-%m-%d} "
                f"to {each.not_valid_after_utc:%Y-%m-%d} only"
            )
    try:
        names = found.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        raise IntegrityError(f"node.crt has no name {NODE}") from None
    if NODE not in names.get_values_for_type(DNSName):
        raise IntegrityError(f"node.crt is not made out to {NODE}")
    return found.not_valid_after_utc


def matches(key: bytes, certificate: bytes) -> bool:
    """Whether the certificate is the key's; raises IntegrityError if one can't be read."""
    return _key(key).public_key() == _certificate(certificate).public_key()


def _unsigned(
    subject: Name, issuer: Name, key: EllipticCurvePrivateKey, now: datetime, days: int
) -> CertificateBuilder:
    from cryptography import x509

    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _usage(*, signs_certificates: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key(pem: bytes) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as e:
        raise IntegrityError(f"a key can't be read: {e}") from e
    if not isinstance(key, EllipticCurvePrivateKey):
        raise IntegrityError(f"a key is {type(key).__name__}, not an elliptic curve's")
    return key


def _certificate(pem: bytes) -> Certificate:
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(pem)
    except ValueError as e:
        raise IntegrityError(f"a certificate can't be read: {e}") from e
