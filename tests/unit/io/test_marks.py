"""Marks: read back by Pillow, by exiftool where it is there, and by C2PA's own reader."""

import datetime
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nearfar.errors import UsageError
from nearfar.io.marks import IN_PART, MADE, MARKED, MIME, SOURCE_TYPES, UNMARKED, Marking, read_signature, with_mark
from nearfar.io.pictures import FORMATS, Frame, Picture, encode, read_picture

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
EXIFTOOL = shutil.which("exiftool")
CAMERA = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/png" '
    b'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" i:DigitalSourceType="http://x/digitalCapture">'
    b"<i:DigitalSourceType>http://x/digitalCapture</i:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def picture(form, metadata=None):
    return Picture(PIXELS, Frame(40, 50, 3, 8, None, form, metadata or {}))


@pytest.mark.parametrize("form", MIME)
def test_every_format_with_xmp_carries_the_mark_and_the_same_pixels(form, tmp_path):
    content = encode(picture(form), mark=MADE, marking=MARKED)
    path = tmp_path / f"a{FORMATS[form].suffixes[0]}"
    path.write_bytes(content)
    assert (SOURCE_TYPES + MADE).encode() in read_picture(path).frame.metadata["xmp"]
    assert content == encode(picture(form), mark=MADE, marking=MARKED)
    plain = tmp_path / f"b{FORMATS[form].suffixes[0]}"
    plain.write_bytes(encode(picture(form), mark=MADE, marking=UNMARKED))
    assert b"DigitalSourceType" not in plain.read_bytes()
    np.testing.assert_array_equal(read_picture(path).pixels, read_picture(plain).pixels)


def test_a_bitmap_has_no_place_for_it():
    assert encode(picture("BMP"), mark=MADE, marking=MARKED) == encode(picture("BMP"))


@pytest.mark.process
@pytest.mark.skipif(not EXIFTOOL, reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
def test_exiftool_reads_the_marks(tmp_path):
    for form in MIME:
        for mark, metadata in ((MADE, {}), (IN_PART, {"xmp": CAMERA})):
            path = tmp_path / f"{mark}{FORMATS[form].suffixes[0]}"
            path.write_bytes(encode(picture(form, metadata), keep_metadata=True, mark=mark, marking=MARKED))
    call = [EXIFTOOL, "-j", "-n", "-XMP-iptcExt:DigitalSourceType", "-Warning", "-XMP-dc:Format", str(tmp_path)]
    told = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)
    assert len(told) == 2 * len(MIME)
    for one in told:
        mark = IN_PART if "composite" in one["SourceFile"] else MADE
        assert one["DigitalSourceType"] == SOURCE_TYPES + mark
        assert one.get("Format") == ("image/png" if mark == IN_PART else None)
        assert "Warning" not in one


def test_what_a_camera_said_of_its_source_is_replaced():
    packet = with_mark(CAMERA, IN_PART)
    assert [packet.count(word) for word in (b"DigitalSourceType", b"digitalCapture", b"dc:format")] == [1, 0, 1]
    assert with_mark(CAMERA, "") == CAMERA
    assert with_mark(b"no xmp at all", MADE).count(b"DigitalSourceType") == 1


def certified(folder, key=None, issuer_key=None):
    """A PEM file as an authority would issue it: a leaf and its root, and the leaf's key."""
    key, issuer_key = (
        key or ec.generate_private_key(ec.SECP256R1()),
        issuer_key or ec.generate_private_key(ec.SECP256R1()),
    )
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Issuer"), x509.NameAttribute(NameOID.COMMON_NAME, "Root")]
    )
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Studio"), x509.NameAttribute(NameOID.COMMON_NAME, "Studio")]
    )

    def certificate(name, public, authority):
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        built = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public)
        built = built.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        built = built.not_valid_after(now + datetime.timedelta(days=30))
        built = built.add_extension(x509.BasicConstraints(authority, None), critical=True)
        built = built.add_extension(x509.KeyUsage(**usage), critical=True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        built = built.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        if not authority:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return built.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "studio.pem"
    path.write_bytes(
        certificate(subject, key.public_key(), False) + certificate(issuer, issuer_key.public_key(), True) + private
    )
    return path


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_signed_file_tells_its_type_and_who_signed_it(kind, tmp_path):
    import c2pa

    marking = Marking(
        signature=read_signature(
            certified(tmp_path, ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else None)
        )
    )
    assert marking.settings() == {"mark": "c2pa"}
    for form in MIME if kind == "p256" else ["PNG"]:
        content = encode(picture(form), mark=IN_PART, marking=marking)
        with c2pa.Reader(MIME[form], io.BytesIO(content)) as reader:
            told = json.loads(reader.json())
        made = told["manifests"][told["active_manifest"]]
        (action,) = [one for one in made["assertions"] if one["label"].startswith("c2pa.actions")]
        assert action["data"]["actions"][0]["digitalSourceType"] == SOURCE_TYPES + IN_PART
        assert made["signature_info"]["issuer"] == "Studio"
        assert "thumbnail" not in made
        failed = {one["code"] for one in told.get("validation_status", [])}
        assert failed <= {"signingCredential.untrusted"}  # nobody trusts a test's issuer
        (tmp_path / f"a{FORMATS[form].suffixes[0]}").write_bytes(content)
        assert read_picture(tmp_path / f"a{FORMATS[form].suffixes[0]}").pixels.shape == PIXELS.shape
    assert encode(picture("BMP"), mark=IN_PART, marking=marking) == encode(picture("BMP"))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_without_certificates_is_refused_before_the_run(content, tmp_path):
    (tmp_path / "x.pem").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.pem must hold a certificate chain for C2PA and its private key"):
        read_signature(tmp_path / "x.pem")
    with pytest.raises(UsageError, match=r"absent\.pem must hold"):
        read_signature(tmp_path / "absent.pem")


def test_a_key_of_another_certificate_is_refused(tmp_path):
    path = certified(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(path.read_bytes().partition(b"-----BEGIN PRIVATE KEY-----")[0] + other)
    with pytest.raises(UsageError, match=r"studio.pem must hold a certificate chain"):
        read_signature(path)
