"""Grids of images as PNG files, captioned."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hkdpipe.manifests.ground.atomic_files import write_atomic

SIDE = 48  # pixels an image is enlarged to, at least, where nothing else is said
GAP = 4
CAPTION = 22


def to_uint8(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images in [-1, 1] to bytes, rounded as EDM does: floor(127.5 x + 128), clipped."""
    return (images * 127.5 + 128).clip(0, 255).astype(np.uint8)


def grid(images: NDArray[np.floating], columns: int, side: int = SIDE) -> Image.Image:
    """Images (N, C, H, W) in [-1, 1], C 1 or 3, row by row; pixels enlarged without smoothing."""
    count, _, height, width = images.shape
    scale = max(1, side // max(height, width))
    rows = -(-count // columns)
    cell_h, cell_w = height * scale + GAP, width * scale + GAP
    sheet = np.full((rows * cell_h + GAP, columns * cell_w + GAP, 3), 255, dtype=np.uint8)
    pixels = to_uint8(images).transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    for index, image in enumerate(pixels):
        top, left = index // columns * cell_h + GAP, index % columns * cell_w + GAP
        sheet[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(sheet)


def beside(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side under their captions."""
    gutter = 4 * GAP
    width = sum(picture.width for _, picture in parts) + gutter * (len(parts) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for _, picture in parts) + CAPTION), "white")
    left = 0
    for caption, picture in parts:
        _caption(sheet, (left + GAP, GAP), caption)
        sheet.paste(picture, (left, CAPTION))
        left += picture.width + gutter
    return sheet


def apart(picture: Image.Image, count: int) -> list[Image.Image]:
    """The pictures, all of one size, of which `beside` made this one."""
    gutter = 4 * GAP
    width = (picture.width - gutter * (count - 1)) // count
    lefts = [number * (width + gutter) for number in range(count)]
    return [picture.crop((left, CAPTION, left + width, picture.height)) for left in lefts]


def strip(
    rows: Sequence[NDArray[np.floating]], captions: Sequence[str], columns: Sequence[str], side: int = SIDE
) -> Image.Image:
    """One row of images (K, C, H, W) under the other, a caption over each row and each column."""
    pictures = [grid(row, len(row), side) for row in rows]
    width = pictures[0].width
    cell = (width - GAP) // len(columns)
    sheet = Image.new(
        "RGB", (width, CAPTION + sum(picture.height + CAPTION for picture in pictures)), "white"
    )
    for index, text in enumerate(columns):
        _caption(sheet, (GAP + index * cell, GAP), text)
    top = CAPTION
    for caption, picture in zip(captions, pictures, strict=True):
        _caption(sheet, (GAP, top + GAP), caption)
        sheet.paste(picture, (0, top + CAPTION))
        top += picture.height + CAPTION
    return sheet


def save_png(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def save_arrays(path: Path, images: NDArray[np.floating], **others: NDArray[Any]) -> None:
    """An .npz of `images` (N, C, H, W) in [-1, 1], as uint8 (N, H, W, C), and of other arrays."""
    buffer = io.BytesIO()
    pixels: dict[str, NDArray[Any]] = {"images": to_uint8(images).transpose(0, 2, 3, 1), **others}
    np.savez_compressed(buffer, **pixels)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def save_animation(path: Path, frames: Sequence[Image.Image], seconds: float) -> None:
    """An endless .gif or .webp (losslessly), each frame shown for `seconds`, the last one for four times."""
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(4000 * seconds)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format=path.suffix[1:],
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        lossless=True,
    )
    write_atomic(path, buffer.getvalue())


def _caption(sheet: Image.Image, position: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(sheet).text(position, text, fill="black", font=ImageFont.load_default(13))
