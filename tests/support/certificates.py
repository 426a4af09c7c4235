"""Certificates for tests, made with openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """An authority, and certificates that it signed, as PEM files."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @property
    def ca(self) -> str:
        return self.path("ca.pem")

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def make(self, name: str, *extensions: str, signer: str | None = "ca", subject: str | None = None) -> None:
        """A certificate and its key, signed by the authority, or by itself."""
        arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        arguments += ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={subject or name}"]
        for extension in extensions:
            arguments += ["-addext", extension]
        self.openssl(*arguments, *(["-CA", f"{signer}.pem", "-CAkey", f"{signer}.key"] if signer else []))

    def make_expired(self, name: str) -> None:
        """A certificate that has expired, signed by itself; `req` makes none in some versions of openssl."""
        self.make(name, signer=None)
        self.openssl("x509", "-in", f"{name}.pem", "-signkey", f"{name}.key", "-days", "-1", "-out", f"{name}.pem")


def make_certificates(directory: Path) -> Files:
    """An authority, and what it signed: the server at 127.0.0.1, another server, and an agent."""
    made = Files(directory)
    made.make("ca", "keyUsage=critical,keyCertSign", signer=None)
    names = {"server": "IP:127.0.0.1", "stranger": "DNS:elsewhere.example", "agent": "DNS:agent.example"}
    for name, alternative in names.items():
        made.make(name, f"subjectAltName={alternative}", "basicConstraints=critical,CA:FALSE")
    return made
