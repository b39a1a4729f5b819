"""Real data that comes from package registries, as plain numpy arrays."""

from collections.abc import Iterator
import os
from pathlib import Path

import numpy as np

from jaxdl.data.idx import read_idx

Arrays = dict[str, np.ndarray]

FASHION_MNIST = (
    "T-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "trainer", "bag", "ankle boot",
)  # fmt: skip


def digits() -> Arrays:
    """Handwritten digits: image float32 [1797, 8, 8, 1] in [0, 1], label int32 [1797].

    The test set of UCI's "Optical Recognition of Handwritten Digits" as scikit-learn
    ships it: nothing is downloaded. Needs scikit-learn (`jaxdl[examples]`).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'digits needs scikit-learn: pip install "jaxdl[examples]"'
        ) from error
    images, labels = load_digits(return_X_y=True)
    image = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return {"image": image, "label": labels.astype(np.int32)}


def fashion_mnist(path: str | Path | None = None) -> tuple[Arrays, Arrays]:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): `(train, test)`.

    image uint8 [60000, 28, 28, 1] and [10000, 28, 28, 1], label int32 in [0, 10), whose
    names are `FASHION_MNIST`. Reads the four IDX files, gzipped or not, from `path` or
    else from `$JAXDL_DATA/fashion-mnist` or where Debian's package
    `dataset-fashion-mnist` puts them; nothing is downloaded.

    Raises FileNotFoundError, saying where it looked, and ValueError for damaged files.
    """
    folder = _folder(path)
    train, test = _labelled(folder, "train", 60_000), _labelled(folder, "t10k", 10_000)
    return train, test


def _folder(path: str | Path | None) -> Path:
    places = [Path(path)] if path is not None else list(_usual_places())
    for place in places:
        if _find(place, "train-images-idx3-ubyte") is not None:
            return place
    looked = "\n  ".join(
        str(place / "train-images-idx3-ubyte[.gz]") for place in places
    )
    raise FileNotFoundError(
        f"Fashion-MNIST not found; looked for\n  {looked}\n"
        "On Debian and Ubuntu: apt-get install dataset-fashion-mnist. Elsewhere take "
        "the four files from https://github.com/zalandoresearch/fashion-mnist and give "
        "their folder as path, or put them into $JAXDL_DATA/fashion-mnist."
    )


def _usual_places() -> Iterator[Path]:
    if "JAXDL_DATA" in os.environ:
        yield Path(os.environ["JAXDL_DATA"]) / "fashion-mnist"
    yield Path("/usr/share/datasets/fashion-mnist")


def _find(folder: Path, name: str) -> Path | None:
    found = (folder / (name + ending) for ending in ("", ".gz"))
    return next((file for file in found if file.is_file()), None)


def _labelled(folder: Path, prefix: str, size: int) -> Arrays:
    image = _array(folder, f"{prefix}-images-idx3-ubyte", (size, 28, 28))
    label = _array(folder, f"{prefix}-labels-idx1-ubyte", (size,))
    if label.max() > 9:
        raise ValueError(
            f"{folder}/{prefix}: expected labels in [0, 10), got {label.max()}"
        )
    return {"image": image[..., None], "label": label.astype(np.int32)}


def _array(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    file = _find(folder, name)
    if file is None:
        raise FileNotFoundError(
            f"{folder}: expected {name} or {name}.gz beside the rest"
        )
    array = read_idx(file)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(
            f"{file}: expected uint8{list(shape)}, got {array.dtype}{list(array.shape)}"
        )
    return array
