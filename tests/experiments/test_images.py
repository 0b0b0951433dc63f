import builtins

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ultrafastbert.experiments.images import HUB, Images, load_images, split_images
from ultrafastbert.utils.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_digits_are_complete_and_the_test_split_is_always_the_same(digits):
    assert digits.shape == (1, 8, 8) and digits.classes == 10
    assert len(digits.train[0]) == 1438 and len(digits.test[0]) == 359
    assert load_images("digits").fingerprint == digits.fingerprint
    changed = Images("digits", digits.train, (digits.test[0], digits.test[1][::-1]))
    assert changed.fingerprint != digits.fingerprint


def test_the_parts_of_a_split_are_disjoint_and_together_the_whole():
    pixels = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1) * np.ones((1, 1, 2, 2), np.uint8)
    images = Images("numbers", (pixels, np.arange(30)), (pixels[:5] + 100, np.arange(5)))
    parts = split_images(images, seed=3)
    train, validation = parts["train"][1].tolist(), parts["validation"][1].tolist()
    assert len(validation) == 3 and sorted(train + validation) == list(range(30))
    assert parts["test"][1].tolist() == list(range(5))


def test_the_seed_determines_the_split(digits):
    first, again, other = (split_images(digits, seed)["validation"][1] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_are_standardised_by_the_training_images():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 200, (50, 3, 4, 4)).astype(np.uint8) // np.array([1, 2, 4], np.uint8)[:, None, None]
    images = Images("noise", (pixels, np.arange(50)), (pixels[:5] + 50, np.arange(5)))
    parts = split_images(images, seed=0)
    x, classes = parts["train"]
    assert x.dtype == torch.float32 and classes.dtype == torch.int64
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(3, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2, 3), correction=0), torch.ones(3))
    # test images are standardised by the same numbers, not by their own
    used = pixels[classes.numpy()]
    deviation = (used - used.mean(axis=0)).std(axis=(0, 2, 3), keepdims=True)
    expected = (images.test[0] - used.mean(axis=0)) / deviation
    np.testing.assert_allclose(parts["test"][0].numpy(), expected, rtol=1e-4, atol=1e-5)


def fake_hub(monkeypatch, columns, size=(4, 4), mode="L"):
    """Replaces load_dataset: eight images per split, whose pixels are their number; returns the list of calls."""
    calls = []

    def load_dataset(repository, configuration=None, split=None):
        calls.append((repository, configuration, split))
        start = 0 if split == "train" else 100
        pictures = [
            Image.new(mode, size, start + number if mode == "L" else (start + number, 1, 2)) for number in range(8)
        ]
        content = {columns[0]: pictures, **{column: list(range(8)) for column in columns[1:]}}
        return datasets.Dataset.from_dict(content).cast_column(columns[0], datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", HUB)
def test_data_sets_of_the_hub_are_read_from_their_columns(monkeypatch, name):
    repository, configuration, *columns = HUB[name]
    calls = fake_hub(monkeypatch, [*columns, "other"])
    images = load_images(name)
    assert calls == [(repository, configuration, "train"), (repository, configuration, "test")]
    assert images.shape == (1, 4, 4) and images.classes == 8
    assert images.train[0][:, 0, 0, 0].tolist() == list(range(8))
    assert images.test[0][:, 0, 0, 0].tolist() == list(range(100, 108))


def test_colours_become_channels(monkeypatch):
    fake_hub(monkeypatch, ["img", "label"], size=(6, 5), mode="RGB")
    images = load_images("cifar10")
    assert images.shape == (3, 5, 6)
    assert images.train[0][3, :, 2, 2].tolist() == [3, 1, 2]


def test_errors_name_the_data_set_and_the_cause(monkeypatch):
    with pytest.raises(UserError, match="dataset is 'letters'; it should be digits or one of usps"):
        load_images("letters")
    fake_hub(monkeypatch, ["picture", "label"])
    with pytest.raises(UserError, match="ylecun/mnist has no column image; its columns are picture, label"):
        load_images("mnist")

    def unreachable(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="split train of flwrlabs/usps cannot be loaded: no network"):
        load_images("usps")


def test_a_missing_library_is_named(monkeypatch):
    real = builtins.__import__

    def without_datasets(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(UserError, match="dataset mnist: split train of ylecun/mnist cannot be loaded: .*datasets"):
        load_images("mnist")


def test_images_of_several_sizes_are_refused(monkeypatch):
    def load_dataset(repository, configuration=None, split=None):
        pictures = [Image.new("L", (4, 4)), Image.new("L", (5, 5))]
        rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]})
        return rows.cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="should have one shape"):
        load_images("usps")
