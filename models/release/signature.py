"""Signatures of bundles, by the library of OpenSSF's model signing, with a key of one's own.

A signature says who made a bundle; the hashes in its manifest only say that it is whole. It covers
every file of the folder, is in Sigstore's format, and lies in the folder as `bundle.sig`. No
service on the internet is asked.
"""

import re
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.folder import MANIFEST, read_manifest, verify_files
from taillift.models.errors import UserError, first_lines

SIGNATURE: Final = "bundle.sig"
# How the library's message begins if the key is right and the files are not.
MISMATCH: Final = "Signature mismatch: "


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle with a private elliptic-curve key in PEM; return the signature's path.

    An older signature is replaced. Raises `UserError` if the bundle is damaged, or the key cannot
    be used.
    """
    signing = library("signing")
    verify_files(bundle, read_manifest(bundle))
    target = bundle / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except Exception as error:  # Of many kinds: a missing file, no PEM, another kind of key.
        raise UserError(
            f"{key} is not a private elliptic-curve key in PEM without a password "
            f"({first_lines(error)}): make one with `openssl ecparam -name prime256v1 -genkey "
            "-noout`"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder) / SIGNATURE
        config.set_hashing_config(every_file()).sign(bundle, signature)
        with atomic_file(target) as temporary:
            shutil.copyfile(signature, temporary)
    return target


def verify_signature(bundle: Path, *keys: Path) -> None:
    """Check that a bundle is as the owner of one of the keys signed it.

    `keys` are public elliptic-curve keys in PEM. Raises `UserError` if the bundle is not signed, if
    it is signed with none of these keys, or if it was changed since.
    """
    verifying = library("verifying")
    path = bundle / SIGNATURE
    if not path.is_file():
        if not (bundle / MANIFEST).is_file():
            read_manifest(bundle)  # Raises: it is not a bundle.
        raise UserError(f"{bundle} is not signed: sign it with `taillift sign`")
    for key in keys:
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        except Exception as error:
            raise UserError(
                f"{key} is not a public elliptic-curve key in PEM ({first_lines(error)}): make it "
                "with `openssl ec -pubout`"
            ) from error
        try:
            config.set_hashing_config(every_file()).verify(bundle, path)
        except Exception as error:  # A signature of another key or form may raise anything.
            if (reason := str(error)).startswith(MISMATCH):
                # The library's list of changes, as text; the hashes in it say nothing more.
                changes = reason.removeprefix(MISMATCH).replace("\\'", "'")
                change = re.sub(": Expected .*", "", changes).lstrip("[\"'").rstrip(']"')
                raise UserError(
                    f"{bundle} was changed after it was signed ({change[:200]}): copy the "
                    "whole bundle again"
                ) from error
        else:
            return
    names = ", ".join(key.name for key in keys)
    raise UserError(f"{bundle} is signed with another key than {names}: do not trust it")


def every_file() -> Any:
    """Return how files are hashed: all of a folder's, but for the signature itself."""
    config = library("hashing").Config()
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def library(name: str) -> ModuleType:
    """Return a module of model-signing; raises `UserError` if it is not installed."""
    try:
        return import_module(f"model_signing.{name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: install taillift[sign] to sign and to verify"
        ) from error
