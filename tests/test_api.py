"""Tests of the public Python API: `taillift.load` and `Classifier.classify`."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import taillift
from taillift.models.bundle.classifier import AnyImage, Result
from taillift.models.bundle.images import (
    BrokenImageError,
    ImageTooLongError,
    NotAnImageError,
    UnreadableImageError,
)
from tests.support.palette import CLASSES, photo, write_bundle
from tests.support.serving import running

RED = CLASSES["red"][0]
# Near the middle between two classes, so that confidences are far from 0 and 1.
DOUBTFUL = (120, 110, 100)


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> taillift.Classifier:
    return taillift.load(bundle)


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle) as client:
        yield client


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Draw an image whose views differ: red grows from left to right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 200, height)[:, None]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def program(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("ensemble", ["off", "full", "adaptive"])
@pytest.mark.parametrize("prior", ["uniform", "train"])
def test_answers_are_those_of_the_service(
    classifier: taillift.Classifier, client: httpx.Client, ensemble: str, prior: str
) -> None:
    for data in (photo(RED), photo(DOUBTFUL), encoded(gradient()), encoded(gradient(), "JPEG")):
        result = classifier.classify(data, ensemble=ensemble, prior=prior, top_k=3)
        query = {"ensemble": ensemble, "prior": prior, "top_k": "3"}
        answer = client.post("/classify", params=query, content=data).json()["results"][0]
        assert result.views == answer["views"]
        assert result.decision == answer["decision"]
        assert (result.reason and result.reason.model_dump()) == answer["decision_reason"]
        for ranked, served in zip(result.ranking, answer["predictions"], strict=True):
            assert (ranked.label, ranked.group) == (served["label"], served["group"])
            assert ranked.confidence == pytest.approx(served["confidence"], rel=1e-5)


def test_without_options_it_is_as_a_request_without_options(
    classifier: taillift.Classifier, client: httpx.Client
) -> None:
    result = classifier.classify(photo(RED))
    answer = client.post("/classify", content=photo(RED)).json()["results"][0]
    labels = [served["label"] for served in answer["predictions"]]
    assert [ranked.label for ranked in result.ranking] == labels
    assert (result.views, result.label, result.group) == (answer["views"], "red", "many")
    assert result.confidence == result.ranking[0].confidence
    assert result.labels_in_set is None


def test_every_kind_of_image_gives_the_same_result(
    classifier: taillift.Classifier, tmp_path: Path
) -> None:
    image = gradient()
    path = tmp_path / "gradient.png"
    image.save(path)
    from_file = classifier.classify(path, ensemble="full")
    others: list[AnyImage] = [
        str(path),
        path.read_bytes(),
        image,
        Image.open(path),
        np.asarray(image),
    ]
    for other in others:
        assert classifier.classify(other, ensemble="full") == from_file


def test_a_photo_turned_by_exif_is_turned_however_it_comes(
    classifier: taillift.Classifier, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    # Red above green, which the orientation puts to the right of it.
    upright = Image.new("RGB", (40, 40), RED)
    upright.paste(CLASSES["green"][0], (0, 20, 40, 40))
    upright.save(path, exif=exif, quality=95)
    opened = Image.open(path)
    by_path, by_image = classifier.classify([path, opened], ensemble="full")
    plain = classifier.classify(upright.transpose(Image.Transpose.ROTATE_270), ensemble="full")
    for result in (by_path, by_image):
        assert result.confidence == pytest.approx(plain.confidence, abs=0.05)
    assert opened.getexif()[0x0112] == 6, "the caller's image does not change"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_an_image_of_any_mode_is_its_file(classifier: taillift.Classifier, mode: str) -> None:
    image = gradient().convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = encoded(image, kind)
    by_bytes, by_image = classifier.classify([data, image])
    if kind == "PNG":
        assert by_bytes == by_image
    assert image.mode == mode
    assert by_bytes.label == by_image.label


def test_transparency_is_laid_on_white(classifier: taillift.Classifier) -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert classifier.classify(clear) == classifier.classify(Image.new("RGB", (20, 20), "white"))


def test_a_sequence_gives_a_list_in_its_order(classifier: taillift.Classifier) -> None:
    labels = list(CLASSES) * 9
    photos = [photo(CLASSES[label][0]) for label in labels]
    for images in (photos, tuple(photos), iter(photos)):
        assert [result.label for result in classifier.classify(images)] == labels
    array = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in photos])
    assert [result.label for result in classifier.classify(array)] == labels


@pytest.mark.parametrize("images", [[], (), iter(())])
def test_no_image_gives_no_result(classifier: taillift.Classifier, images: list[bytes]) -> None:
    assert classifier.classify(images) == []


def test_images_are_read_a_batch_at_a_time(classifier: taillift.Classifier) -> None:
    read = 0

    def many() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield photo(RED)
        raise KeyError("the end")

    with pytest.raises(taillift.UserError, match="adaptive"):
        classifier.classify(many(), ensemble="adaptiv")
    assert read == 0
    with pytest.raises(KeyError):
        classifier.classify(many(), ensemble="full")
    assert read == 100


def test_an_image_that_cannot_be_used_is_named(
    classifier: taillift.Classifier, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(NotAnImageError, match=r"text\.jpg: not a JPEG, PNG or WebP image"):
        classifier.classify([photo(RED), text])
    with pytest.raises(UnreadableImageError, match=r"missing\.jpg: No such file"):
        classifier.classify(tmp_path / "missing.jpg")
    with pytest.raises(BrokenImageError, match=r"^image 1: "):
        classifier.classify([photo(RED), photo(RED)[:60]])
    with pytest.raises(ImageTooLongError, match=r"^image 0: .*32 times"):
        classifier.classify(Image.new("RGB", (400, 10)))
    with pytest.raises(NotAnImageError, match=r"image 0: .* uint8 \[H, W, 3\], not float64"):
        classifier.classify(np.zeros((9, 9, 3)))
    assert issubclass(NotAnImageError, taillift.UserError)


def test_an_error_can_take_the_place_of_its_result(classifier: taillift.Classifier) -> None:
    images = [photo(RED), b"text", photo(CLASSES["blue"][0]), b""]
    first, second, third, fourth = classifier.classify(images, errors="return")
    assert isinstance(first, Result)
    assert isinstance(third, Result)
    assert (first.label, third.label) == ("red", "blue")
    assert isinstance(second, NotAnImageError)
    assert isinstance(fourth, NotAnImageError)
    assert isinstance(classifier.classify(b"text", errors="return"), NotAnImageError)


def test_what_is_not_an_image_at_all_is_a_type_error(classifier: taillift.Classifier) -> None:
    with pytest.raises(TypeError, match="not int"):
        classifier.classify([3])  # type: ignore[list-item]
    # Each yields pieces, which would be taken for images.
    for whole in (io.BytesIO(photo(RED)), bytearray(photo(RED)), memoryview(photo(RED))):
        with pytest.raises(TypeError, match=f"not {type(whole).__name__}"):
            classifier.classify(whole)  # type: ignore[arg-type]


def test_an_image_without_pixels_cannot_be_used(classifier: taillift.Classifier) -> None:
    for size in ((0, 0), (0, 5)):
        with pytest.raises(BrokenImageError, match="image 0: the image has no pixels"):
            classifier.classify(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ensemble": "ful"}, r"ensemble 'ful' is not known \(did you mean \"full\"\?\)"),
        ({"prior": "winter"}, "prior 'winter' is not known: choose one of uniform, train"),
        ({"tail": 1.5}, r"tail 1\.5 is not from 0 to 1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"errors": "retrun"}, "errors 'retrun' is not known: choose raise or return"),
        ({"coverage": 0.2}, r"coverage 0\.2 is not from 0\.5 to 0\.99"),
        ({"coverage": 0.9}, "no calibration to make sets from"),
    ],
)
def test_a_wrong_option_is_one_line(
    classifier: taillift.Classifier, options: dict[str, object], words: str
) -> None:
    with pytest.raises(taillift.UserError, match=words) as caught:
        classifier.classify(photo(RED), **options)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


def test_a_wrong_bundle_or_device_is_one_line(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(taillift.UserError, match="manifest"):
        taillift.load(tmp_path)
    with pytest.raises(taillift.UserError, match="has no int8 variant"):
        taillift.load(str(bundle), precision="int8")
    with pytest.raises(taillift.UserError, match=r"provider 'cpus' is not known \(did you mean"):
        taillift.load(bundle, provider="cpus")
    with pytest.raises(taillift.UserError, match="threads is 0: give 1 or more"):
        taillift.load(bundle, threads=0)


def test_threads_are_those_of_the_session(bundle: Path) -> None:
    classifier = taillift.load(bundle, threads=1)
    assert classifier.session.device.threads == 1
    assert classifier.classify(photo(RED)).label == "red"


def test_coverage_adds_a_set_of_labels(tmp_path: Path) -> None:
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.folder import HeldOutScores
    from taillift.models.bundle.prediction_sets import Interpolation, PredictionSets
    from taillift.models.bundle.predictor import Predictor
    from taillift.models.bundle.schema import Precision
    from tests.support.palette import palette_manifest

    classifier = taillift.load(write_bundle(tmp_path / "palette"))
    sets = PredictionSets(interpolation=Interpolation(pull=0), photos=280, reach={}, data="others")
    manifest = palette_manifest("v", {})
    variant = manifest.variants[Precision.FP32].model_copy(update={"sets": sets})
    scores = np.full(280, 0.1, np.float32)
    classifier.predictor = Predictor(
        manifest.model_copy(update={"variants": {Precision.FP32: variant}}),
        Precision.FP32,
        HeldOutScores(np.repeat(np.arange(7), 40), dict.fromkeys(Ensemble, scores)),
    )
    result = classifier.classify(photo(DOUBTFUL), coverage=0.9, top_k=7)
    expected = tuple(ranked.label for ranked in result.ranking if ranked.confidence >= 0.1)
    assert result.labels_in_set == expected
    assert len(expected) > 1


def test_the_import_is_light_and_torch_is_never_needed(bundle: Path) -> None:
    heavy = "[name for name in ('numpy', 'onnxruntime', 'PIL', 'torch') if name in sys.modules]"
    assert program(f"import sys, taillift; print({heavy})") == "[]"
    code = (
        "import sys, taillift\n"
        f"print(taillift.load({str(bundle)!r}).classify({photo(RED)!r}).label)\n"
        "print('torch' in sys.modules, 'fastapi' in sys.modules)\n"
    )
    assert program(code).split() == ["red", "False", "False"]


def test_the_package_says_its_version_and_what_it_has() -> None:
    from importlib.metadata import version

    assert taillift.__version__ == version("taillift")
    assert set(taillift.__all__) == {"Classifier", "UserError", "__version__", "load"}
    with pytest.raises(AttributeError, match="has no attribute 'clasify'"):
        _ = taillift.clasify  # type: ignore[attr-defined]
