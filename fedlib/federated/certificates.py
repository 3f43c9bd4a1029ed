"""Keys and certificates of a federation on this machine: its own authority, the server's certificate, a key per node."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

HOST = "127.0.0.1"
AUTHORITY, SERVER, SERVER_KEY = "ca.crt", "server.crt", "server.key"


def write_certificates(folder: Path, valid: datetime.timedelta = datetime.timedelta(days=30)) -> None:
    """Write ca.crt, server.crt and server.key (PEM) for a server on this machine. The authority's own key is not kept."""
    authority, server = new_key(), new_key()
    identity = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    signs = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    certificates = {
        AUTHORITY: _certificate("fedlib authority", authority, valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**signs), critical=True)
        .add_extension(identity, critical=False),
        SERVER: _certificate(HOST, server, valid)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False),
    }
    for name, certificate in certificates.items():
        signed = certificate.sign(authority, hashes.SHA384())
        (folder / name).write_bytes(signed.public_bytes(Encoding.PEM))
    _write_secret(folder / SERVER_KEY, server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def write_node_key(path: Path) -> Path:
    """Write a node's private key to `path` and its public key beside it (OpenSSH); returns the path of the public one."""
    key, public = new_key(), path.with_name(f"{path.name}.pub")
    _write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


def new_key() -> EllipticCurvePrivateKey:
    """A key on the curve P-384, which Flower asks of nodes."""
    return generate_private_key(SECP384R1())


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _certificate(subject: str, key: EllipticCurvePrivateKey, valid: datetime.timedelta) -> x509.CertificateBuilder:
    """A certificate of the authority, from a day ago (clocks differ) or, expired, from a day before its end."""
    now = datetime.datetime.now(datetime.UTC)
    day, issuer = datetime.timedelta(days=1), "fedlib authority"
    return x509.CertificateBuilder(
        issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=min(now, now + valid) - day,
        not_valid_after=now + valid,
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
