"""How large an image may be. Apart from `images`, so that a command's help waits for no NumPy."""

from typing import Final

MAX_PIXELS: Final = 50_000_000
MAX_ASPECT: Final = 32
