"""A certificate authority for an hour's use: what an embedded server with TLS shows, and what a client shows to it."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Any

from .process import extra

__all__ = ["Authority"]

_LIFE = dt.timedelta(days=1)


class Authority:
    """Signs certificates; its own is `pem`.

    Parameters
    ----------
    folder : Path, optional
        Where `issue` writes; ``ca.pem`` is written there at once.
    """

    def __init__(self, folder: Path | None = None, *, name: str = "devstack CA") -> None:
        self._folder = folder
        self._x509 = extra("cryptography.x509")
        self._hashes = extra("cryptography.hazmat.primitives.hashes")
        self._ec = extra("cryptography.hazmat.primitives.asymmetric.ec")
        self._forms = extra("cryptography.hazmat.primitives.serialization")
        self._name = self._named(name)
        self._key = self._ec.generate_private_key(self._ec.SECP256R1())
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(self._x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(self._x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(self._usage(signs_certificates=True), critical=True)
            .sign(self._key, self._hashes.SHA256())
        )
        self.pem: str = certificate.public_bytes(self._forms.Encoding.PEM).decode()
        if folder is not None:
            (folder / "ca.pem").write_text(self.pem, encoding="ascii")

    def issue(self, name: str) -> tuple[Path, Path]:
        """Paths of a new certificate and its key for *name*, good as server at 127.0.0.1 and localhost, and as client."""
        if self._folder is None:
            raise ValueError("an authority without a folder issues nothing")
        key = self._ec.generate_private_key(self._ec.SECP256R1())
        hosts = [self._x509.DNSName("localhost"), self._x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usages = extra("cryptography.x509.oid").ExtendedKeyUsageOID
        issuer = self._x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(self._named(name), key)
            .add_extension(self._x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(self._x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(self._x509.ExtendedKeyUsage([usages.SERVER_AUTH, usages.CLIENT_AUTH]), critical=False)
            .add_extension(self._usage(signs_certificates=False), critical=True)
            .add_extension(issuer, critical=False)
            .sign(self._key, self._hashes.SHA256())
        )
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(self._forms.Encoding.PEM))
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(
            key.private_bytes(self._forms.Encoding.PEM, self._forms.PrivateFormat.PKCS8, self._forms.NoEncryption())
        )
        return paths

    def _builder(self, subject: Any, key: Any) -> Any:
        now = dt.datetime.now(dt.UTC)
        return (
            self._x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(self._x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + _LIFE)
        )

    def _named(self, name: str) -> Any:
        attribute = extra("cryptography.x509.oid").NameOID.COMMON_NAME
        return self._x509.Name([self._x509.NameAttribute(attribute, name)])

    def _usage(self, *, signs_certificates: bool) -> Any:
        return self._x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=signs_certificates,
            crl_sign=signs_certificates,
            encipher_only=False,
            decipher_only=False,
        )
