"""Marks: files that a model made say so, by IPTC's digital source type in XMP, and signed (C2PA) where that is asked.

The XMP packet says nothing but the type. A signed file also tells who signed it, when it was, and which program made
it, and each signing gives other bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from nearfar.errors import ImageError, UsageError
from nearfar.io.extras import needed

MADE, IN_PART = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""IPTC's words for a picture that a model made, and for one that is in part a photograph's."""

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DESCRIPTION = (
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{{}}"/>'
)
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
END = b"</rdf:RDF>"
EARLIER = re.compile(rb'\s\w+:DigitalSourceType="[^"]*"|<(\w+:DigitalSourceType)\b.*?(</\1>|/>)', re.DOTALL)
"""What a packet says of its source so far, as an attribute or as an element."""

MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}
MIME |= {"AVIF": "image/avif", "HEIC": "image/heic"}
ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512", "ed25519": "ed25519", "rsa": "ps256"}
"""C2PA's name of what a key signs with, by its curve."""

SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
"""Of C2PA's library: a signed file says nothing beside what `manifest` says."""

PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


def with_mark(packet: bytes, mark: str) -> bytes:
    """An XMP packet with the mark, in place of what it said of its source; a new one where it cannot take it."""
    if not mark:
        return packet
    description = DESCRIPTION.format(mark)
    packet = EARLIER.sub(b"", packet)
    if b"xmlns:rdf=" not in packet or END not in packet:
        return PACKET.format(description).encode()
    head, _, tail = packet.rpartition(END)
    return head + description.encode() + END + tail


@dataclass(frozen=True, eq=False)
class Signature:
    """Who signs files by C2PA. certificates: a chain as PEM text, the signer's own first. key: its private key."""

    certificates: str
    key: str
    algorithm: str

    def sign(self, content: bytes, form: str, mark: str) -> bytes:
        """The file with a signed manifest that tells its digital source type; other formats are passed on unsigned."""
        c2pa = needed("c2pa", "c2pa")
        if form not in MIME:
            return content
        info = c2pa.C2paSignerInfo(self.algorithm.encode(), self.certificates.encode(), self.key.encode(), None)
        signed = BytesIO()
        context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest(mark)), context) as builder:
            builder.sign(signer, MIME[form], BytesIO(content), signed)
        return signed.getvalue()


def manifest(mark: str) -> dict[str, Any]:
    """What is signed: that a file was made, by what, and of which type it is."""
    from importlib.metadata import version

    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPES + mark}
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [{"name": "nearfar", "version": version("nearfar")}], "assertions": [actions]}


@dataclass(frozen=True)
class Marking:
    """How what is written says that a model made it. xmp: in XMP, in the formats that have it. signature: for C2PA."""

    xmp: bool = True
    signature: Signature | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the bytes; signed files are other ones every time."""
        return {"mark": "c2pa" if self.signature else "xmp" if self.xmp else "none"}

    def finish(self, content: bytes, form: str, mark: str) -> bytes:
        """The file as it is written."""
        return self.signature.sign(content, form, mark) if self.signature else content


MARKED = Marking()
UNMARKED = Marking(xmp=False)


def read_signature(path: Path) -> Signature:
    """Certificates and private key in a PEM file. UsageError where they are not both there, or c2pa is not installed.

    One certificate that is tried at once, so that a run does not fail at its first file.
    """
    try:
        c2pa = needed("c2pa", "c2pa")
        load_key = needed("cryptography.hazmat.primitives.serialization", "c2pa").load_pem_private_key
    except ImageError as error:
        raise UsageError(f"--c2pa {error}") from None
    try:
        parts = {kind: [found[0] for found in PEM.finditer(path.read_bytes()) if kind in found[1]] for kind in KINDS}
        certificates, (key,) = b"\n".join(parts[b"CERTIFICATE"]).decode(), parts[b"PRIVATE KEY"]
        private: Any = load_key(key, None)
        curve = getattr(getattr(private, "curve", None), "name", type(private).__name__.lower())
        algorithm = next(name for kind, name in ALGORITHMS.items() if kind in curve)
        found = Signature(certificates + "\n", key.decode() + "\n", algorithm)
        found.sign(SMALLEST, "PNG", MADE)
    except (OSError, ValueError, TypeError, StopIteration, c2pa.C2paError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{path} must hold a certificate chain for C2PA and its private key, unencrypted, as PEM ({reason}): "
            "ask who issued the certificate"
        ) from None
    return found


KINDS = (b"CERTIFICATE", b"PRIVATE KEY")
SMALLEST = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200014898"
    "a8a40000000049454e44ae426082"
)
"""A PNG of one pixel."""
