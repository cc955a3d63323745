"""Certificates of both sides of a connection."""

from __future__ import annotations

import ssl
from pathlib import Path

from medseg.errors import Problem, ResourceError


def server_tls(certificate: Path, key: Path, authority: Path | None) -> ssl.SSLContext:
    """For listening; with `authority`, clients must show a certificate that it has signed. Raises ResourceError for unusable files."""
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(error, certificate, key, authority) from None
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(authority: Path | None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For calling; the other side is checked by `authority` (None: the system's), and sees `certificate`.

    Raises:
        ResourceError: unusable files.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(error, certificate, key, authority) from None
    return context


def _unusable(error: Exception, *files: Path | None) -> ResourceError:
    return ResourceError(
        Problem(
            "the certificates cannot be used",
            where=", ".join(str(file) for file in files if file is not None),
            found=str(error),
            expected="a certificate, its key without a password, and an authority, all as PEM",
        )
    )
