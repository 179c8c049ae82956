import colorsys
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.images import image_sets
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.images.image_sets import Format, load_images, load_labels, select_images

Pixels = NDArray[Any]


def pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def picture(path: Path, values: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def refusal(source: Path | str) -> str:
    with pytest.raises(InputError) as raised:
        load_images(str(source))
    return str(raised.value)


def test_digits_are_all_there_in_their_range() -> None:
    images, classes = load_digits()
    assert (images.shape, str(images.dtype), classes.shape) == ((1797, 1, 8, 8), "float32", (1797,))
    assert (images.min(), images.max()) == (-1, 1)
    assert set(np.unique(images * 8 + 8).tolist()) == set(range(17))
    assert np.bincount(classes).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.array_equal(load_images("digits"), images)


def test_tinted_digits_have_one_hue_each_and_the_luminance_of_the_grey_ones() -> None:
    """The hues, by the angle of their strongest pixel, are spread evenly."""
    grey, classes = load_digits()
    images = load_images("digits-color")
    assert (images.shape, str(images.dtype)) == ((1797, 3, 8, 8), "float32")
    assert images.min() >= -1
    assert 0.95 < images.max() <= 1  # as saturated as the range allows
    luminance = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], images)
    np.testing.assert_allclose(luminance + 1, 0.6 * (grey[:, 0] + 1), atol=1e-6)
    strokes = (images + 1).transpose(0, 2, 3, 1).reshape(1797, 64, 3)
    strongest = strokes[np.arange(1797), strokes.sum(axis=2).argmax(axis=1)]
    share = strokes.sum(axis=2) / strongest.sum(axis=1)[:, None]
    np.testing.assert_allclose(strokes, share[:, :, None] * strongest[:, None], atol=1e-6)
    hues = [colorsys.rgb_to_hsv(*tint)[0] for tint in strongest]
    assert (np.histogram(hues, 3, (0, 1))[0] > 400).all()
    assert len(np.unique(np.round(hues, 4))) > 1700
    labels = load_labels("digits-color")
    assert labels is not None
    assert np.array_equal(labels, classes)


def test_one_image_of_a_set_by_its_number(tmp_path: Path) -> None:
    data = pixels(3, 4, 5)
    for index, values in enumerate(data):
        picture(tmp_path / f"{index}.png", values)
    whole = load_images(str(tmp_path))
    assert np.array_equal(select_images(f"{tmp_path}:2"), whole[2:])
    assert np.array_equal(select_images(str(tmp_path)), whole)
    assert np.array_equal(select_images("digits:7"), load_digits()[0][7:8])
    with pytest.raises(InputError, match=rf"{tmp_path}:3: no such image; accepted: {tmp_path}:0 to .*:2"):
        select_images(f"{tmp_path}:3")


def test_a_picture_is_a_set_of_one(tmp_path: Path) -> None:
    """Also one whose name looks like a number in a set."""
    data = pixels(4, 5)
    picture(tmp_path / "a.png", data)
    (tmp_path / "a.png").rename(tmp_path / "1:2.png")
    (tmp_path / "folder:7").mkdir()
    picture(tmp_path / "folder:7/a.png", data)
    for source in ("1:2.png", "1:2.png:0", "folder:7"):
        images = select_images(str(tmp_path / source))
        assert np.array_equal(images, data[None, None].astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_pictures_in_the_order_of_their_names(tmp_path: Path, channels: int) -> None:
    data = pixels(3, 4, 5, channels)
    for name, values in zip(("a.png", "b/a.BMP", "c.png"), data, strict=True):
        picture(tmp_path / name, values.squeeze())
    (tmp_path / "notes.txt").write_text("not a picture")
    images = load_images(str(tmp_path))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, data.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_ends_of_the_byte_range_are_the_ends_of_the_interval(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8))
    assert load_images(str(tmp_path)).ravel().tolist() == [-1, 1]


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", pixels(8, 8))
    picture(tmp_path / "b.png", pixels(8, 9))
    assert refusal(tmp_path) == f"{tmp_path / 'b.png'}: shape (8, 9, 1), but a.png has (8, 8, 1)"


def test_grey_among_coloured_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", pixels(8, 8, 3))
    picture(tmp_path / "b.png", pixels(8, 8))
    assert "b.png: shape (8, 8, 1), but a.png has (8, 8, 3)" in refusal(tmp_path)


def test_folder_without_pictures(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: holds no pictures (.png, ")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def bad_chunk(content: bytes) -> bytes:
    """The length of a PNG's data chunk spoilt: Pillow answers with a SyntaxError."""
    place = content.index(b"IDAT") - 4
    return content[:place] + b"\x00\x00\x00\x05" + content[place + 4 :]


@pytest.mark.parametrize("damage", [cut, bad_chunk, lambda content: b"", lambda content: b"words"])
def test_broken_picture_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, pixels(32, 32))
    path = tmp_path / "b.png"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(tmp_path).startswith(f"{path}: not a readable picture (")


def test_sixteen_bits_a_channel_are_refused_not_cut_off(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    assert "a.png: not a readable picture (more than 8 bits a channel)" in refusal(tmp_path)


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3)])
def test_npz_of_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = pixels(*shape)
    (tmp_path / "set.npz").write_bytes(archive(images=data, labels=np.arange(5)))
    images = load_images(str(tmp_path / "set.npz"))
    assert (str(images.dtype), images.flags.c_contiguous) == ("float32", True)
    expected = data.reshape(5, 4, 6, -1).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(images, expected, atol=1e-6)


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels(5, 4, 4))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(pictures=pixels(5, 4, 4)), "holds no array named 'images'"),
        (archive(images=np.zeros((5, 4, 4))), "images: float64 (5, 4, 4, 1); accepted: uint8 (N, H, W[, C])"),
        (archive(images=pixels(4, 4)), "images: uint8 (4, 4); accepted: uint8 (N, H, W[, C])"),
        (archive(images=pixels(0, 4, 4)), "images: uint8 (0, 4, 4, 1); accepted: uint8 (N, H, W[, C])"),
        (archive(images=np.array([None])), "not a readable .npz (Object arrays cannot be loaded"),
        (archive(images=pixels(50, 4, 4))[:400], "not a readable .npz (File is not a zip file)"),
        (b"", "not a readable .npz (No data left in file)"),
        (b"words", "not a readable .npz ("),
        (single_array(), "not a readable .npz (it is a .npy, one array without a name)"),
    ],
    ids=["key", "dtype", "rank", "none", "objects", "truncated", "empty", "text", "npy"],
)
def test_wrong_npz(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_flipped_byte_in_npz(tmp_path: Path, place: float) -> None:
    content = bytearray(archive(images=pixels(50, 8, 8)))
    content[int(place * len(content))] ^= 255
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: not a readable .npz (")


def test_classes_of_digits_and_of_subfolders(tmp_path: Path) -> None:
    assert np.array_equal(load_labels("digits"), load_digits()[1])  # type: ignore[arg-type]
    for value, name in enumerate(("dog/b.png", "cat/10.png", "dog/a/9.png", "cat/2.png")):
        picture(tmp_path / name, np.full((2, 2), value, dtype=np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a picture")
    labels = load_labels(str(tmp_path))
    assert labels is not None
    shades = np.round((load_images(str(tmp_path))[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()
    assert dict(zip(shades, labels.tolist(), strict=True)) == {0: 1, 1: 0, 2: 1, 3: 0}
    picture(tmp_path / "stray.png", pixels(2, 2))
    assert load_labels(str(tmp_path)) is None


def test_classes_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(archive(images=pixels(3, 4, 4), labels=np.array([2, 0, 2], dtype=np.uint8)))
    labels = load_labels(str(path))
    assert labels is not None
    assert (labels.dtype, labels.tolist()) == (np.int64, [2, 0, 2])
    path.write_bytes(archive(images=pixels(3, 4, 4)))
    assert load_labels(str(path)) is None
    for wrong in (np.array([0, 1]), np.array([0.0, 1, 2]), np.array([-1, 0, 1]), np.eye(3, dtype=int)):
        path.write_bytes(archive(images=pixels(3, 4, 4), labels=wrong))
        with pytest.raises(InputError) as raised:
            load_labels(str(path))
        assert str(raised.value) == (
            f"{path}: labels: {wrong.dtype} {wrong.shape}; accepted: a class number from 0 on for each of "
            "the 3 images"
        )


def test_unknown_image_set(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path / "nothing.npz", "letters"):
        assert refusal(source).startswith(f"{source}: no such image set; accepted: 'digits', ")


def zipped(path: Path, data: Pixels, said: Any = None) -> Path:
    """A .zip of pictures as EDM's data sets are: PNGs in folders, and their classes in dataset.json."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in reversed(range(len(data))):
            buffer = io.BytesIO()
            Image.fromarray(data[number].squeeze()).save(buffer, "png")
            archive.writestr(f"{number // 2:05d}/img{number:08d}.png", buffer.getvalue())
        if said is not None:
            archive.writestr("dataset.json", json.dumps(said))
    return path


def names(count: int) -> list[str]:
    return [f"{number // 2:05d}/img{number:08d}.png" for number in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_zip_of_pictures_in_the_order_of_their_names(tmp_path: Path, channels: int) -> None:
    data = pixels(5, 4, 6, channels)
    path = zipped(tmp_path / "set.zip", data)
    np.testing.assert_allclose(load_images(str(path)), data.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    assert load_labels(str(path)) is None


def test_classes_of_a_zip(tmp_path: Path) -> None:
    said = [[name, number % 3] for number, name in enumerate(names(5))]
    labels = load_labels(str(zipped(tmp_path / "set.zip", pixels(5, 4, 4), {"labels": said[::-1]})))
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert load_labels(str(zipped(tmp_path / "none.zip", pixels(5, 4, 4), {"labels": None}))) is None
    for wrong, what in (
        ({"labels": said[1:]}, f"dataset.json: no class of '{names(1)[0]}'"),
        ({"classes": said}, "dataset.json: no class of 'labels'"),
        ({"labels": [[name, 0.5] for name in names(5)]}, "labels: float64 (5,); accepted: a class number"),
        ({"labels": [[name, [1, 2]] for name in names(5)]}, "labels: int64 (5, 2); accepted: a class number"),
    ):
        path = zipped(tmp_path / "wrong.zip", pixels(5, 4, 4), wrong)
        with pytest.raises(InputError) as raised:
            load_labels(str(path))
        assert str(raised.value).startswith(f"{path}: {what}")


def test_wrong_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", pixels(5, 32, 32))
    content = path.read_bytes()
    for damaged in (content[:300], b"words", content[:200] + bytes([content[200] ^ 255]) + content[201:]):
        path.write_bytes(damaged)
        assert refusal(path).startswith(str(path))
        assert "not a readable" in refusal(path)
    zipfile.ZipFile(path, "w").close()
    assert refusal(path).startswith(f"{path}: holds no pictures")


class Dots(Format):
    words = words_of_classes = "a file of dots"

    def holds(self, path: Path) -> bool:
        return path.suffix == ".dots"

    def images(self, source: str) -> NDArray[np.float32]:
        return np.ones((len(Path(source).read_text()), 1, 8, 8), np.float32)


def test_a_form_is_one_class_that_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "_FORMATS", [*image_sets.formats()])
    (tmp_path / "x.dots").write_text("...")
    assert refusal(tmp_path / "x.dots").endswith("a .zip of pictures, an .npz file")
    image_sets.register(Dots())
    assert load_images(str(tmp_path / "x.dots")).shape == (3, 1, 8, 8)
    assert load_labels(str(tmp_path / "x.dots")) is None
    assert refusal("none").endswith("an .npz file, a file of dots")
