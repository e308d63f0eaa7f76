"""Writes a small random backbone and small photo folders, for tests that need no good accuracy."""

import json
import zlib
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

ARCHITECTURE = "ViT-Tiny-Test"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


def register(folder: Path) -> None:
    """Register the architecture with open_clip, by a config file in `folder`."""
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)


def write_backbone(folder: Path, seed: int = 0) -> str:
    """Write random weights to a file in `folder`; return the backbone's name, ARCH:PATH."""
    register(folder)
    torch.manual_seed(seed)
    path = folder / f"tiny-{seed}.safetensors"
    save_file(open_clip.create_model(ARCHITECTURE).state_dict(), path)
    return f"{ARCHITECTURE}:{path}"


def write_photo(path: Path, colour: tuple[int, int, int], seed: int = 0) -> None:
    """Write an image of a colour with noise."""
    noise = np.random.default_rng(seed).integers(-30, 30, (48, 64, 3))
    pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_photos(root: Path, counts: dict[str, int], splits: tuple[str, ...] = ("train",)) -> Path:
    """Write SPLIT/COLOUR/*.png: `counts` photos of each colour in train, two in other splits."""
    for split in splits:
        for name, count in counts.items():
            for index in range(count if split == "train" else 2):
                seed = zlib.crc32(f"{split}/{name}/{index}".encode())
                write_photo(root / split / name / f"{index:03}.png", COLOURS[name], seed)
    return root
