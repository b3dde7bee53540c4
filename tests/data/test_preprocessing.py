import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFile

from noisytwins_jax.data.preprocessing import CROPS, FILTERS, PUBLISHED, Preprocessing
from noisytwins_jax.utils.errors import UserError

# Width and height: odd and even differences of the sides, wide and tall, larger and smaller than the result.
SIZES = [(37, 50), (50, 37), (37, 51), (64, 37), (200, 35), (35, 200), (33, 33), (10, 23), (16, 9), (17, 16), (16, 19)]


def pixels(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise over a gradient, uint8 ``[height, width, channels]``: every place looks different."""
    noise = np.random.default_rng(seed).integers(0, 100, (height, width, channels))
    ramp = np.add.outer(np.linspace(0, 75, height), np.linspace(0, 80, width))
    return (noise + ramp[..., None]).astype(np.uint8)


def file(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def process(picture, name: str = PUBLISHED, resolution: int = 16, channels: int = 3) -> tuple[np.ndarray, list[str]]:
    """The result, and what was told to be converted."""
    kinds: list[str] = []
    result = Preprocessing.parse(name)(picture, resolution, channels, kinds.append)
    assert result.shape == (resolution, resolution, channels) and result.dtype == np.uint8
    return result, kinds


def square(image: Image.Image) -> Image.Image:
    """What torchvision's ``center_crop`` to the shorter side keeps of an RGB image."""
    side = min(image.size)
    left, top = (half_to_even(length - side) for length in image.size)
    return Image.fromarray(np.asarray(image)[top : top + side, left : left + side])


def half_to_even(number: int) -> int:
    """``int(round(number / 2.0))`` of Python 3, torchvision's offset: 0, 0, 1, 2, 2, 2, 3, 4, …"""
    half, rest = divmod(number, 2)
    return half + (rest & half)


@pytest.mark.parametrize("size", SIZES)
def test_published_is_the_central_square_and_one_lanczos_filter(size):
    image = Image.fromarray(pixels(*size))
    expected = np.asarray(square(image).resize((16, 16), Image.Resampling.LANCZOS))
    for picture in (file(image), np.asarray(image)):
        result, kinds = process(picture)
        np.testing.assert_array_equal(result, expected)
        assert kinds == []


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(50, 37), (9, 24)])
def test_filters_and_stretch(filter, size):
    image = Image.fromarray(pixels(*size))
    method = {
        "lanczos": Image.Resampling.LANCZOS,
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "box": Image.Resampling.BOX,
        "hamming": Image.Resampling.HAMMING,
    }[filter]
    cropped, stretched = process(file(image), f"center-{filter}")[0], process(file(image), f"stretch-{filter}")[0]
    np.testing.assert_array_equal(cropped, square(image).resize((16, 16), method))
    np.testing.assert_array_equal(stretched, image.resize((16, 16), method))
    assert (cropped != stretched).any()


def test_filters_differ():
    picture = file(Image.fromarray(pixels(50, 37)))
    results = [process(picture, f"center-{filter}")[0] for filter in FILTERS]
    assert all((a != b).any() for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize(("word", "border"), [("", 0), ("-white", 255), ("-edge", None), ("-edge-white", None)])
@pytest.mark.parametrize(("size", "inner"), [((50, 37), (16, 12)), ((9, 24), (6, 16)), ((64, 3), (16, 1))])
def test_padding_is_around_the_whole_picture(size, inner, word, border):
    picture, (width, height) = pixels(*size), inner
    result, _ = process(picture, f"pad-box{word}")
    left, top = (16 - width) // 2, (16 - height) // 2
    small = np.asarray(Image.fromarray(picture).resize(inner, Image.Resampling.BOX))
    np.testing.assert_array_equal(result[top : top + height, left : left + width], small)
    rows, columns = (np.clip(np.arange(16) - start, 0, n - 1) for start, n in ((top, height), (left, width)))
    inside = np.zeros((16, 16, 1), bool)
    inside[top : top + height, left : left + width] = True
    expected = np.where(inside, small[rows][:, columns], border) if border is not None else small[rows][:, columns]
    np.testing.assert_array_equal(result, expected)


def test_a_padded_picture_of_the_size_is_not_resampled():
    picture = pixels(16, 10)
    np.testing.assert_array_equal(process(file(Image.fromarray(picture)), "pad")[0][3:13], picture)


@pytest.mark.parametrize("crop", ["center", "stretch", "pad"])
@pytest.mark.parametrize("filter", FILTERS)
def test_a_picture_of_the_size_is_left_as_it_is(crop, filter):
    original = pixels(16, 16)
    np.testing.assert_array_equal(process(file(Image.fromarray(original)), f"{crop}-{filter}")[0], original)
    np.testing.assert_array_equal(process(original, f"{crop}-{filter}")[0], original)


# --- colours -----------------------------------------------------------------------------------------------------------


def test_grey():
    grey = pixels(16, 16, 1)
    for picture in (file(Image.fromarray(grey[..., 0])), grey[..., 0]):
        result, kinds = process(picture)
        np.testing.assert_array_equal(result, np.repeat(grey, 3, axis=2))
        assert kinds == ["grey images"]
        result, kinds = process(picture, channels=1)
        np.testing.assert_array_equal(result, grey)
        assert kinds == []


def test_colours_to_grey_are_the_luma_of_itu_r_601():
    original = pixels(16, 16)
    result, kinds = process(file(Image.fromarray(original)), channels=1)
    np.testing.assert_allclose(result[..., 0], original @ [0.299, 0.587, 0.114], atol=1)
    assert kinds == ["colour images"]


def test_palette():
    image = Image.fromarray(pixels(16, 16)).quantize(12)
    table = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    result, kinds = process(file(image))
    np.testing.assert_array_equal(result, table[np.asarray(image)])
    assert kinds == []


def test_one_bit():
    bits = pixels(16, 16, 1)[..., 0] > 90
    result, kinds = process(file(Image.fromarray(bits)))
    np.testing.assert_array_equal(result, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))
    assert kinds == ["grey images"]


def test_palette_is_filtered_as_colours():
    """Mixing palette entries by their numbers would give other colours."""
    image = Image.fromarray(pixels(40, 32)).quantize(12)
    expected = square(image.convert("RGB")).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(process(file(image))[0], expected)


def test_palette_with_transparency():
    image = Image.fromarray(pixels(16, 16)).quantize(12)
    numbers, table = np.asarray(image), np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    picture = file(image, transparency=3)
    hidden = numbers == 3
    assert 0 < hidden.sum() < 256
    result, kinds = process(picture)
    np.testing.assert_array_equal(result, table[numbers])
    assert kinds == ["images with transparency"]
    result, kinds = process(picture, "center-lanczos-white")
    np.testing.assert_array_equal(result, np.where(hidden[..., None], 255, table[numbers]))
    assert kinds == ["images with transparency"]


def test_alpha():
    rgba = pixels(16, 16, 4)
    rgba[:4, :, 3], rgba[4:8, :, 3] = 0, 255
    result, kinds = process(file(Image.fromarray(rgba)))
    np.testing.assert_array_equal(result, rgba[..., :3])
    assert kinds == ["images with transparency"]
    result, kinds = process(file(Image.fromarray(rgba)), "center-lanczos-white")
    share = rgba[..., 3:] / 255
    np.testing.assert_allclose(result, rgba[..., :3] * share + 255 * (1 - share), atol=1)
    assert (result[:4] == 255).all() and (result[4:8] == rgba[4:8, :, :3]).all()
    assert kinds == ["images with transparency"]


def test_grey_with_alpha():
    values = pixels(16, 16, 2)
    values[:8, :, 1] = 0
    picture = file(Image.fromarray(values, "LA"))
    result, kinds = process(picture)
    np.testing.assert_array_equal(result, np.repeat(values[..., :1], 3, axis=2))
    assert kinds == ["images with transparency"]
    white, _ = process(picture, "center-lanczos-white", channels=1)
    share = values[..., 1:] / 255
    np.testing.assert_allclose(white, values[..., :1] * share + 255 * (1 - share), atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour(mode):
    original = pixels(16, 16, len(mode))
    key = original[5, 5]
    picture = file(
        Image.fromarray(original.squeeze()), transparency=int(key[0]) if mode == "L" else tuple(map(int, key))
    )
    hidden = (original == key).all(-1, keepdims=True)
    colours = np.broadcast_to(original, (16, 16, 3))
    result, kinds = process(picture)
    np.testing.assert_array_equal(result, colours)
    assert kinds == ["images with transparency"]
    np.testing.assert_array_equal(process(picture, "center-lanczos-white")[0], np.where(hidden, np.uint8(255), colours))


def test_cmyk():
    image = Image.new("CMYK", (40, 16))
    for i, ink in enumerate([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]):
        image.paste(ink, (8 * i, 0, 8 * i + 8, 16))
    result, kinds = process(file(image, "JPEG", quality=100, subsampling=0), "stretch-box", resolution=8)
    white, cyan, magenta, yellow, black = result[4, [0, 2, 4, 5, 7]].astype(int)
    for found, expected in [
        (white, (255, 255, 255)),
        (cyan, (0, 255, 255)),
        (yellow, (255, 255, 0)),
        (black, (0, 0, 0)),
    ]:
        np.testing.assert_allclose(found, expected, atol=4)
    assert magenta[1] < min(magenta[0], magenta[2])
    assert kinds == ["CMYK images"]


def test_sixteen_bits_keep_their_brightness():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    result, kinds = process(file(Image.fromarray(values * 257)))
    np.testing.assert_array_equal(result, np.repeat(values[..., None], 3, axis=2))
    assert kinds == ["images of 16 or 32 bits a channel"]
    near = file(Image.fromarray(values * 257 + np.where(values < 255, 128, 0).astype(np.uint16)))
    np.testing.assert_array_equal(process(near, channels=1)[0][..., 0], values)  # the nearest of 8 bits
    dark = process(file(Image.fromarray(np.zeros((16, 16), np.uint16))))[0]
    assert (dark == 0).all()


def test_floating_point_pictures_are_in_0_to_255():
    values = np.linspace(-20, 300, 256, dtype=np.float32).reshape(16, 16)
    result, kinds = process(file(Image.fromarray(values), "TIFF"), channels=1)
    np.testing.assert_array_equal(result[..., 0], np.clip(np.round(values), 0, 255))
    assert kinds == ["images of 16 or 32 bits a channel"]


def test_other_colours_are_named():
    result, kinds = process(file(Image.fromarray(pixels(16, 16)).convert("LAB"), "TIFF"))
    assert result.std() > 10
    assert kinds == ["LAB images"]


# --- orientation -------------------------------------------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_photographs_are_turned_if_asked_for(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = file(Image.fromarray(pixels(24, 16)), format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(picture)))
    np.testing.assert_array_equal(process(picture, "stretch-box")[0], process(stored, "stretch-box")[0])
    turned = np.ascontiguousarray(TURNS[orientation](stored))
    np.testing.assert_array_equal(process(picture, "stretch-box-upright")[0], process(turned, "stretch-box")[0])


def test_tiff_files_are_turned_once():
    """Pillow turns them when it reads them."""
    original, exif = pixels(24, 16), Image.Exif()
    exif[0x0112] = 6
    picture = file(Image.fromarray(original), "TIFF", exif=exif)
    turned = process(np.rot90(original, -1), "stretch-box")[0]
    for name in ("stretch-box", "stretch-box-upright"):
        np.testing.assert_array_equal(process(picture, name)[0], turned)


def test_upright_without_exif_changes_nothing():
    for picture in (pixels(24, 16), file(Image.fromarray(pixels(24, 16)))):
        np.testing.assert_array_equal(process(picture, f"{PUBLISHED}-upright")[0], process(picture)[0])


# --- damaged files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_by_others", [False, True])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_truncated_files_are_an_error(format, set_by_others, monkeypatch):
    """Half a picture over grey must never count as one; some libraries tell Pillow otherwise, for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", set_by_others)
    picture = file(Image.fromarray(pixels(60, 50)), format)
    process(picture)
    for share in (0.0, 0.01, 0.3, 0.5, 0.9):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", set_by_others)
        with pytest.raises((OSError, ValueError)):
            process(picture[: int(share * len(picture))])


def test_a_damaged_png_is_an_error():
    picture = bytearray(file(Image.fromarray(pixels(60, 50))))
    picture[len(picture) // 2] ^= 1
    with pytest.raises((OSError, ValueError)):
        process(bytes(picture))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html>404</html>", bytes(1000)])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(OSError):
        process(data)


# --- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("center-lanczos", "center-lanczos"),
        ("lanczos-center", "center-lanczos"),
        ("box", "center-box"),
        ("stretch", "stretch-lanczos"),
        ("white", "center-lanczos-white"),
        ("upright-white-bicubic-stretch", "stretch-bicubic-white-upright"),
        ("upright-hamming", "center-hamming-upright"),
        ("pad", "pad-lanczos"),
        ("edge-pad-white", "pad-lanczos-edge-white"),
    ],
)
def test_words_stand_in_any_order(name, usual):
    assert Preprocessing.parse(name).name == usual


def test_names_round_trip():
    assert Preprocessing().name == PUBLISHED
    flags = (False, True)
    everything = [
        *itertools.product(CROPS, FILTERS, flags, flags),
        *itertools.product(["pad"], FILTERS, flags, flags, [True]),
    ]
    names = set()
    for values in everything:
        preprocessing = Preprocessing(*values)
        assert Preprocessing.parse(preprocessing.name) == preprocessing
        names.add(preprocessing.name)
    assert len(names) == len(everything) == 4 * len(FILTERS) * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("center-lancos", "'center-lancos' has no meaning for 'lancos'; did you mean 'lanczos'?"),
        ("centre-lanczos", "no meaning for 'centre'; did you mean 'center'?"),
        ("center_lanczos", "no meaning for 'center_lanczos'; did you mean 'lanczos'?"),
        ("Center-lanczos", "no meaning for 'Center'; did you mean 'center'?"),
        ("center-lanczos-whit", "did you mean 'white'?"),
        ("", "no meaning for ''"),
        ("center--lanczos", "no meaning for ''"),
        ("stretch-edge", "'stretch-edge' pads nothing, so edge has no effect; give pad-edge"),
        ("pad-center", "'pad-center' says one thing twice"),
        ("center-stretch", "'center-stretch' says one thing twice"),
        ("box-center-lanczos", "says one thing twice; give for example center-lanczos"),
        ("lanczos-lanczos", "says one thing twice"),
        ("white-center-white", "says one thing twice"),
    ],
)
def test_names_without_meaning(name, message):
    with pytest.raises(UserError) as error:
        Preprocessing.parse(name)
    assert message in str(error.value) and "\n" not in str(error.value)
