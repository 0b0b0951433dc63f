"""Images with classes: scikit-learn's digits, or a data set of the Hub.

Images stay bytes until a run asks for its split, so that what worker processes are sent is small. The validation rows
and the statistics for standardising come from the training split alone; the test split is only ever evaluated on.
"""

import hashlib
from dataclasses import dataclass

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
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
"""Of all digits, which have no test split of their own; of the training rows, as in the paper."""

Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Images:
    """A data set: uint8 images `(rows, channels, height, width)` and int64 classes `(rows,)`, training and test."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def classes(self) -> int:
        return int(max(self.train[1].max(), self.test[1].max())) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.train[0].shape[1:]

    @property
    def fingerprint(self) -> str:
        """A hash of all rows, in their order."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.test):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]


def load_images(name: str) -> Images:
    """The data set of this name, `digits` or a key of `HUB`.

    Raises:
        UserError: the data set cannot be had, or is not of the form expected of it.
    """
    if name == "digits":
        return _digits()
    if name not in HUB:
        raise UserError(f"dataset is {name!r}; it should be digits or one of {', '.join(HUB)}")
    return Images(name, _from_hub(name, "train"), _from_hub(name, "test"))


def _digits() -> Images:
    """1797 images of 8x8 pixels; a fifth of them, always the same, are the test split."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(TEST_SHARE * len(images))])
    return Images("digits", (images[train], classes[train]), (images[test], classes[test]))


def _from_hub(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    repository, configuration, image_column, class_column = HUB[name]
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"dataset {name} needs the library datasets: pip install datasets") from None
    try:
        rows = load_dataset(repository, configuration, split=split)
    except Exception as error:  # no network, no such repository, no such split: each library has its own kinds
        raise UserError(f"dataset {name}: split {split} of {repository} cannot be loaded: {error}") from error
    for column in (image_column, class_column):
        if column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise UserError(f"dataset {name}: {repository} has no column {column}; its columns are {there}")
    images = [np.asarray(image, dtype=np.uint8) for image in rows[image_column]]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(f"dataset {name}: images of {repository} are of shapes {shapes}; they should be of one")
    images = np.stack(images)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images, np.asarray(rows[class_column], dtype=np.int64)


def split_images(images: Images, seed: int) -> dict[str, Part]:
    """The rows of a run: `train`, `validation` (a tenth of the training rows, drawn by `seed`) and `test`.

    Each is a pair of float32 images `(rows, channels, height, width)` and int64 classes `(rows,)`. The mean image of
    `train` is subtracted, and every channel then scaled to a standard deviation of 1 over these rows. A mean for every
    pixel matters to trees: what all images share would give a node's decisions one sign for all of them, and the
    hardening loss would leave it there.
    """
    pixels, classes = images.train
    order = np.random.default_rng(seed).permutation(len(pixels))
    validation, train = np.split(order, [round(VALIDATION_SHARE * len(pixels))])
    mean = pixels[train].mean(axis=0).astype(np.float32)
    deviation = (pixels[train] - mean).std(axis=(0, 2, 3), keepdims=True)

    def part(pixels, classes):
        return torch.from_numpy((pixels - mean) / deviation), torch.from_numpy(classes.astype(np.int64))

    return {
        "train": part(pixels[train], classes[train]),
        "validation": part(pixels[validation], classes[validation]),
        "test": part(*images.test),
    }
