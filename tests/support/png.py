"""Parts of PNG files, as no encoder would write them."""

import struct
import zlib


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk with its length and its checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum
