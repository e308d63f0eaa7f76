"""taillift: fine-tune CLIP on long-tailed photos, serve it, and watch its rare classes.

import taillift

classifier = taillift.load("bundle")
for result in classifier.classify(["cat.jpg", "owl.jpg"]):
    print(result.label, result.confidence)
"""

from os import PathLike

# Type checkers take it for true. The import of `typing` is most of what importing this costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.errors import UserError

    __version__: str

__all__ = ["Classifier", "UserError", "__version__", "load"]


def load(
    path: str | PathLike[str],
    *,
    precision: str = "fp32",
    provider: str = "cpu",
    threads: int | None = None,
    max_pixels: int = 50_000_000,
) -> "Classifier":
    """Open a bundle, as `taillift export` writes it, to classify images without a server.

    `precision` ("fp32", "fp16" or "int8") names one of the bundle's graphs, `provider` ("cpu",
    "cuda", "tensorrt" or "openvino") what runs it, and `threads` the CPU threads of a batch, by
    default one for each core. Images with more than `max_pixels` are refused. Raises `UserError` if
    the bundle is damaged or cannot run so, or if an option is wrong.

    Threads may share the result; processes may not: load the bundle in each of them.
    """
    from taillift.models.bundle.classifier import Classifier

    return Classifier.load(path, precision, provider, threads, max_pixels)


if not TYPE_CHECKING:
    # Nothing is imported before it is needed, above all numpy and ONNX Runtime.
    def __getattr__(name: str) -> object:
        match name:
            case "Classifier":
                from taillift.models.bundle.classifier import Classifier

                return Classifier
            case "UserError":
                from taillift.models.errors import UserError

                return UserError
            case "__version__":
                from importlib.metadata import version

                return version("taillift")
        raise AttributeError(f"module 'taillift' has no attribute {name!r}")
