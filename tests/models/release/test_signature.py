"""Signatures: who made a bundle, and that it is still what they signed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import MANIFEST, read_manifest
from taillift.models.errors import UserError
from taillift.models.release.archive import pack, unpack
from taillift.models.release.signature import SIGNATURE, sign, verify_signature


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys that the documentation tells to make, of two people."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
        subprocess.run([*make, "-out", str(private)], check=True, capture_output=True)
        derive = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(derive, check=True, capture_output=True)
    return folder


@pytest.fixture
def signed(bundle: Path, keys: Path, tmp_path: Path) -> Path:
    """A bundle that we have signed."""
    copy = tmp_path / "signed"
    shutil.copytree(bundle, copy)
    sign(copy, keys / "ours.pem")
    return copy


def refusal(bundle: Path, *keys: Path) -> str:
    with pytest.raises(UserError) as error:
        verify_signature(bundle, *keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_signed_bundle_is_accepted_served_and_of_the_same_version(
    signed: Path, bundle: Path, keys: Path
) -> None:
    verify_signature(signed, keys / "ours.pub")
    verify_signature(signed, keys / "theirs.pub", keys / "ours.pub")
    assert Classifier.open(signed).manifest == read_manifest(bundle)
    assert {path.name for path in signed.iterdir()} == {
        *(path.name for path in bundle.iterdir()),
        SIGNATURE,
    }


def test_unsigned_signed_by_another_and_tampered_are_three_different_lines(
    bundle: Path, signed: Path, keys: Path, tmp_path: Path
) -> None:
    ours = keys / "ours.pub"
    stranger = tmp_path / "stranger"
    shutil.copytree(signed, stranger)
    sign(stranger, keys / "theirs.pem")
    model = signed / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    assert refusal(bundle, ours).endswith("is not signed: sign it with `taillift sign`")
    assert "is signed with another key than ours.pub" in refusal(stranger, ours)
    tampered = refusal(signed, ours)
    assert "was changed after it was signed (Hash mismatch for 'model.onnx')" in tampered


@pytest.mark.parametrize("change", ["manifest", "extra", "hidden", "missing", "git"])
def test_every_file_of_the_folder_is_covered(change: str, signed: Path, keys: Path) -> None:
    match change:
        case "manifest":
            text = (signed / MANIFEST).read_text()
            (signed / MANIFEST).write_text(text.replace("a red thing", "a read thing"))
        case "extra":
            (signed / "more.bin").write_bytes(b"more")
        case "hidden":
            (signed / ".more").write_bytes(b"more")
        case "missing":
            (signed / "golden.npz").unlink()
        case "git":
            (signed / ".gitattributes").write_text("more")
    assert "was changed after it was signed" in refusal(signed, keys / "ours.pub")


@pytest.mark.parametrize("text", ["", "{}", "not json", "signature of another bundle"])
def test_a_signature_that_is_none_is_not_believed(text: str, signed: Path, keys: Path) -> None:
    if text.startswith("signature"):
        text = (signed / SIGNATURE).read_text().replace("A", "B")
    (signed / SIGNATURE).write_text(text)
    assert "is signed with another key than" in refusal(signed, keys / "ours.pub")


def test_a_bundle_is_signed_again_after_a_change(signed: Path, keys: Path) -> None:
    sign(signed, keys / "ours.pem")
    verify_signature(signed, keys / "ours.pub")
    sign(signed, keys / "theirs.pem")
    verify_signature(signed, keys / "theirs.pub")


def test_the_signature_travels_with_a_packed_bundle(
    signed: Path, bundle: Path, keys: Path, tmp_path: Path
) -> None:
    pack(signed, tmp_path / "signed.taillift", bundle)
    unpack(tmp_path / "signed.taillift", tmp_path / "arrived", bundle)
    verify_signature(tmp_path / "arrived", keys / "ours.pub")


def test_wrong_keys_are_named(signed: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ours\.pub is not a private elliptic-curve key"):
        sign(signed, keys / "ours.pub")
    assert "ours.pem is not a public elliptic-curve key" in refusal(signed, keys / "ours.pem")
    assert "is not a public elliptic-curve key" in refusal(signed, tmp_path / "missing")


def test_a_folder_that_is_not_a_bundle_is_told(tmp_path: Path, keys: Path) -> None:
    assert "is not a bundle" in refusal(tmp_path, keys / "ours.pub")


def test_the_commands_sign_and_verify(bundle: Path, keys: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    run = CliRunner().invoke
    assert run(app, ["sign", str(copy), "--key", str(keys / "ours.pem")]).exit_code == 0
    verified = run(app, ["verify-signature", str(copy), "--key", str(keys / "ours.pub")])
    assert "signed, and unchanged since" in verified.output


def test_a_store_with_keys_takes_only_bundles_that_they_have_signed(
    bundle: Path, signed: Path, keys: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    add = ["models", "add", str(store)]
    asked = CliRunner().invoke(app, [*add, str(signed), "--require-signature"])
    assert isinstance(asked.exception, UserError)
    assert "has no public key" in str(asked.exception)
    (store / "keys").mkdir()
    shutil.copy(keys / "ours.pub", store / "keys")
    unsigned = CliRunner().invoke(app, [*add, str(bundle)])
    assert isinstance(unsigned.exception, UserError)
    assert "is not signed" in str(unsigned.exception)
    stranger = tmp_path / "stranger"
    shutil.copytree(signed, stranger)
    sign(stranger, keys / "theirs.pem")
    foreign = CliRunner().invoke(app, [*add, str(stranger)])
    assert isinstance(foreign.exception, UserError)
    assert "is signed with another key than ours.pub" in str(foreign.exception)
    (signed / "more.txt").write_text("more")
    tampered = CliRunner().invoke(app, [*add, str(signed)])
    assert isinstance(tampered.exception, UserError)
    assert "was changed after it was signed" in str(tampered.exception)
    (signed / "more.txt").unlink()
    assert CliRunner().invoke(app, [*add, str(signed)]).stdout == "1\n"
