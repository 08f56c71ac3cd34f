import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from linearize.config import DataConfig
from linearize.data import Dataset, batches_per_epoch, hold_out, load_dataset, ordered_batches, training_batches
from linearize.errors import ConfigError, DataError
from linearize.progress import Reporter
from linearize.rng import generator

QUIET = Reporter(quiet=True)


def write_image(path: Path, seed: int, size: int = 8) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, 10 training and 3 test images each, all different."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("ant", "bee")):
        for index in range(10):
            write_image(root / "train" / name / f"{index}.png", 100 * label + index)
        for index in range(3):
            write_image(root / "test" / name / f"{index}.png", 1000 + 100 * label + index)
    return root


def config(directory: Path, dataset: str = "folder", **more: object) -> DataConfig:
    fields = {"dataset": dataset, "data_dir": str(directory), "cache_dir": str(directory.parent / "cache")}
    return DataConfig.model_validate({**fields, "image_size": 8, **more})


def image_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_equal_scikit_learns_images() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset(DataConfig(), QUIET)
    assert data.input_shape == (1, 8, 8)
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert not data.flip
    assert data.crop_padding == 0
    images = torch.cat([split.images for split in (data.train, data.val, data.test)])
    digits = load_digits()
    assert image_set(images) == image_set(torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None])
    labels = torch.cat([split.labels for split in (data.train, data.val, data.test)])
    assert labels.bincount().tolist() == np.bincount(digits.target).tolist()


def test_folder_reads_the_pixels_that_were_written(folder: Path) -> None:
    data = load_dataset(config(folder), QUIET)
    assert data.class_names == ("ant", "bee")
    expected = {write_image(folder / "x.png", seed).transpose(2, 0, 1).tobytes() for seed in (1000, 1001, 1002)}
    assert image_set(data.test.images[data.test.labels == 0]) == expected


def test_folder_splits_are_disjoint_stratified_and_independent_of_the_call(folder: Path) -> None:
    data = load_dataset(config(folder, validation_fraction=0.3), QUIET)
    parts = [image_set(split.images) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [14, 6, 6]
    assert len(set.union(*parts)) == 26
    assert data.val.labels.bincount().tolist() == [3, 3]
    again = load_dataset(config(folder, validation_fraction=0.3), QUIET)
    assert torch.equal(again.val.images, data.val.images)


def test_val_folder_serves_as_test_part_and_validation_still_comes_from_train(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    data = load_dataset(config(folder), QUIET)
    assert len(data.test) == 6
    assert len(data.train) + len(data.val) == 20


def test_images_of_other_sizes_and_modes_are_converted(folder: Path) -> None:
    Image.new("L", (20, 12), 77).save(folder / "train" / "ant" / "grey.png")
    data = load_dataset(config(folder), QUIET)
    images = torch.cat([data.train.images, data.val.images])
    assert images.shape == (21, 3, 8, 8)
    assert (images == 77).flatten(1).all(1).sum() == 1


def test_cache_is_used_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_dataset(config(folder), QUIET)
    with monkeypatch.context() as patch:
        patch.setattr("linearize.image_files._decode", lambda path, size: pytest.fail("decoded again"))
        cached = load_dataset(config(folder), QUIET)
    assert torch.equal(cached.train.images, before.train.images)
    write_image(folder / "test" / "ant" / "0.png", 4711)
    os.utime(folder / "test" / "ant" / "0.png", ns=(1, 1))
    after = load_dataset(config(folder), QUIET)
    assert not torch.equal(after.test.images, before.test.images)


def test_broken_cache_is_made_again(folder: Path) -> None:
    before = load_dataset(config(folder), QUIET)
    for path in (folder.parent / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(load_dataset(config(folder), QUIET).train.images, before.train.images)


def test_mean_and_std_equal_numpys_over_the_training_images(folder: Path) -> None:
    data = load_dataset(config(folder), QUIET)
    pixels = data.train.images.numpy() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), atol=1e-6)
    normalised = torch.cat([inputs for inputs, _ in ordered_batches(data, data.train, 4)])
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)


def test_limit_keeps_classes_even(folder: Path) -> None:
    data = load_dataset(config(folder, limit=4), QUIET)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert len(data.val) == 2
    assert len(data.test) == 4


def tiny_imagenet(root: Path) -> Path:
    for label, name in enumerate(("n01", "n02")):
        for index in range(4):
            write_image(root / "train" / name / "images" / f"{name}_{index}.png", 10 * label + index)
    return root


def test_tinyimagenet_reads_both_layouts_of_its_validation_part_alike(tmp_path: Path) -> None:
    annotated, sorted_ = tiny_imagenet(tmp_path / "a"), tiny_imagenet(tmp_path / "b")
    rows = []
    for index, name in enumerate(("n02", "n01", "n02")):
        write_image(annotated / "val" / "images" / f"val_{index}.png", 50 + index)
        write_image(sorted_ / "val" / name / f"val_{index}.png", 50 + index)
        rows.append(f"val_{index}.png\t{name}\t0\t0\t7\t7\n")
    (annotated / "val" / "val_annotations.txt").write_text("".join(rows))
    first, second = (load_dataset(config(root, "tinyimagenet"), QUIET) for root in (annotated, sorted_))
    for data in (first, second):
        assert sorted(data.test.labels.tolist()) == [0, 1, 1]
        assert len(data.train) + len(data.val) == 8
        assert data.class_names == ("n01", "n02")
    assert image_set(first.test.images[first.test.labels == 1]) == image_set(
        second.test.images[second.test.labels == 1]
    )


def test_hold_out_is_a_partition_with_the_asked_share_of_each_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 21 + [2] * 2)
    kept, held = hold_out(labels, 0.2, ("a", "b", "c"))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(33))
    assert labels[held].bincount().tolist() == [2, 4, 1]


def made_dataset(**more: object) -> Dataset:
    data = load_dataset(DataConfig(limit=50, crop_padding=1), QUIET)
    return Dataset(**{**data.__dict__, **more})


def test_an_epoch_shows_every_image_once_and_repeats_with_its_generator() -> None:
    data = made_dataset()
    epochs = [list(training_batches(data, 10, True, generator(0, "x", epoch))) for epoch in (0, 0, 1)]
    order = [torch.cat([batch.indices for batch in batches]) for batches in epochs]
    assert sorted(order[0].tolist()) == list(range(50))
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(epochs[0], epochs[1], strict=True))


@pytest.mark.parametrize("augmented", [False, True])
def test_inputs_are_row_major_even_with_one_channel(augmented: bool) -> None:
    for batch in training_batches(made_dataset(), 10, augmented, generator(0, "x")):
        assert batch.inputs.stride() == (64, 64, 8, 1)


def test_without_augmentation_batches_are_the_normalised_images() -> None:
    data = made_dataset()
    for batch in training_batches(data, 10, False, generator(0, "x")):
        assert not batch.augmented
        expected = (data.train.images[batch.indices].float() / 255 - data.mean[0]) / data.std[0]
        torch.testing.assert_close(batch.inputs, expected)


def test_an_epoch_of_some_images_shows_each_once_and_others_the_next_time() -> None:
    data = load_dataset(DataConfig(epoch_images=100))
    epochs = [
        torch.cat([batch.indices for batch in training_batches(data, 10, False, generator(0, "epoch", number))])
        for number in range(2)
    ]
    assert batches_per_epoch(data, 10) == 10
    assert [len(set(epoch.tolist())) for epoch in epochs] == [100, 100]
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    assert load_dataset(DataConfig(epoch_images=10**6)).images_per_epoch == len(data.train)


def test_incomplete_batch_is_left_out_but_a_small_split_makes_one() -> None:
    data = made_dataset()
    sizes = [len(batch.labels) for batch in training_batches(data, 20, True, generator(0, "x"))]
    assert sizes == [20, 20]
    sizes = [len(batch.labels) for batch in training_batches(data, 80, True, generator(0, "x"))]
    assert sizes == [50]


def test_corrupt_image_is_named(folder: Path) -> None:
    bad = folder / "train" / "bee" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"train/bee/3\.png: corrupt or not an image .*replace or remove it"):
        load_dataset(config(folder), QUIET)


def test_messages_about_directories(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such directory; data\.data_dir must name the directory of folder"
    ):
        load_dataset(config(tmp_path / "nowhere"), QUIET)
    with pytest.raises(DataError, match=r"data\.data_dir must name the directory of folder, got nothing"):
        load_dataset(DataConfig(dataset="folder"), QUIET)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/train: empty, must hold one folder of images for each class"):
        load_dataset(config(tmp_path / "empty"), QUIET)
    with pytest.raises(DataError, match=r"pictures/train/train: no such directory"):
        load_dataset(config(folder / "train"), QUIET)
    (folder / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train/cat: holds no images .*fill it or remove it"):
        load_dataset(config(folder), QUIET)


@pytest.mark.parametrize(("part", "word"), [("train", "training"), ("test", "test")])
def test_class_missing_from_one_part_is_named(folder: Path, part: str, word: str) -> None:
    write_image(folder / part / "cat" / "0.png", 9)
    with pytest.raises(DataError, match=rf"class 'cat' is in the {word} part only"):
        load_dataset(config(folder), QUIET)


def test_class_of_a_single_image_is_named(folder: Path) -> None:
    for part in ("train", "test"):
        write_image(folder / part / "cat" / "0.png", 9)
    with pytest.raises(DataError, match=r"class 'cat' has 1 training images; at least 2"):
        load_dataset(config(folder), QUIET)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_absent_cifar_says_how_to_get_it_and_touches_no_network(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network access"))
    with pytest.raises(DataError, match=rf"{dataset} not found or damaged .*data\.download"):
        load_dataset(DataConfig(dataset=dataset, data_dir=str(tmp_path)), QUIET)


def test_tinyimagenet_messages(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path / "a")
    with pytest.raises(DataError, match=r"a/val: no such directory"):
        load_dataset(config(root, "tinyimagenet"), QUIET)
    (root / "val").mkdir()
    with pytest.raises(DataError, match=r"a/val: holds no images"):
        load_dataset(config(root, "tinyimagenet"), QUIET)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.png\tn09\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"no class of the training part in the line 'val_0\.png n09"):
        load_dataset(config(root, "tinyimagenet"), QUIET)
    annotations.write_text("val_0.png\tn01\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_0\.png: named in val_annotations\.txt but missing"):
        load_dataset(config(root, "tinyimagenet"), QUIET)


def test_image_size_of_a_fixed_size_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size must be unset for digits"):
        load_dataset(DataConfig(image_size=16), QUIET)
