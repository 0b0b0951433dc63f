"""Images with classes: scikit-learn's digits, or a data set of the Hub.

The test split is used for evaluation only: validation images and the statistics for standardising come from the
training split.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from ultrafastbert.utils.errors import UserError

HUB = {
    "usps": ("flwrlabs/usps", None, "image", "label"),
    "mnist": ("ylecun/mnist", None, "image", "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None, "image", "label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
    "cifar10": ("uoft-cs/cifar10", None, "img", "label"),
    "cifar100": ("uoft-cs/cifar100", None, "img", "fine_label"),
}
"""Repository, configuration, and the columns of images and classes."""

Part = tuple[torch.Tensor, torch.Tensor]
"""float32 images `(images, channels, height, width)` and int64 classes `(images,)`."""


@dataclass(frozen=True)
class Images:
    """A data set; images are uint8 `(images, channels, height, width)`, classes int64 `(images,)`.

    Attributes:
        name: its name in options.
        train: images and classes of the training split.
        test: images and classes of the test split.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(max(self.train[1].max(), self.test[1].max())) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.train[0].shape
        return channels, height, width

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all images and classes, in their order; 16 hexadecimal digits of SHA-256."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.test):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def load_images(name: str) -> Images:
    """The data set `digits`, or one of `HUB`.

    Raises:
        UserError: there is no such data set, or it cannot be loaded or does not have the expected columns.
    """
    if name == "digits":
        return _digits()
    if name not in HUB:
        raise UserError(f"dataset is {name!r}; it should be digits or one of {', '.join(HUB)}")
    return Images(name, _from_hub(name, "train"), _from_hub(name, "test"))


def _digits() -> Images:
    """1797 images of 8x8 pixels without a test split; a fifth of them, always the same ones, become one."""
    from sklearn.datasets import load_digits

    pixels, classes = cast(tuple[np.ndarray, np.ndarray], load_digits(return_X_y=True))
    images = pixels.reshape(-1, 1, 8, 8).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(0.2 * len(images))])
    return Images("digits", (images[train], classes[train]), (images[test], classes[test]))


def _from_hub(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    repository, configuration, image_column, class_column = HUB[name]
    try:
        from datasets import load_dataset  # here, because importing it takes seconds

        table = load_dataset(repository, configuration, split=split)
    except Exception as error:  # without network, repository or split, each library raises its own errors
        raise UserError(f"dataset {name}: split {split} of {repository} cannot be loaded: {error}") from error
    for column in (image_column, class_column):
        if column not in table.column_names:
            names = ", ".join(table.column_names)
            raise UserError(f"dataset {name}: {repository} has no column {column}; its columns are {names}")
    images = [np.asarray(image, dtype=np.uint8) for image in table[image_column]]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(f"dataset {name}: images of {repository} have shapes {shapes}; they should have one shape")
    pixels = np.stack(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return pixels, np.asarray(table[class_column], dtype=np.int64)


def split_images(images: Images, seed: int) -> dict[str, Part]:
    """The `train`, `validation` and `test` parts for a training.

    A tenth of the training split, drawn by `seed`, is for validation, as in the paper. The mean image of `train` is
    subtracted from all images, then each channel is scaled to a standard deviation of 1 over `train`. Trees need a
    mean for each pixel: what all images have in common would give the decisions of a node the same sign for nearly all
    of them, and the hardening loss would keep it.
    """
    pixels, classes = images.train
    order = np.random.default_rng(seed).permutation(len(pixels))
    validation, train = np.split(order, [round(0.1 * len(pixels))])
    mean = pixels[train].mean(axis=0).astype(np.float32)
    deviation = (pixels[train] - mean).std(axis=(0, 2, 3), keepdims=True)

    def part(pixels: np.ndarray, classes: np.ndarray) -> Part:
        return torch.from_numpy((pixels - mean) / deviation), torch.from_numpy(classes.astype(np.int64))

    parts = {name: part(pixels[some], classes[some]) for name, some in (("train", train), ("validation", validation))}
    return parts | {"test": part(*images.test)}
