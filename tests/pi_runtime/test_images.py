"""Images in: known pixels, and one test a message."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.images import class_names, find_images, load_images


def graph(channels=3, side=4, **metadata):
    return Graph(input="x", input_shape=(channels, side, side), output="x", nodes=(), metadata=metadata)


def test_a_picture_and_its_array_give_the_same_known_numbers(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", pixels)
    net = graph(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])
    first, second = load_images([tmp_path / "a.png", tmp_path / "b.npy"], net)
    assert np.array_equal(first, second)
    assert first[2, 1, 3] == pytest.approx((pixels[1, 3, 2] / 255 - 0.3) / 4.0)


def test_pictures_are_converted_and_resized(tmp_path):
    Image.fromarray(np.full((9, 5, 3), 200, np.uint8)).save(tmp_path / "a.jpg")
    (image,) = load_images([tmp_path / "a.jpg"], graph(channels=1))
    assert image.shape == (1, 4, 4)
    assert np.allclose(image, 200 / 255, atol=0.01)


def test_a_folder_gives_its_images_in_order(tmp_path):
    for name in ("b/2.png", "a/9.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "a/9.png", tmp_path / "b/2.png"]


def test_class_names_fall_back_to_numbers():
    net = Graph(input="x", input_shape=(2,), output="x", nodes=(), metadata={"class_names": ["cat", "dog"]})
    assert class_names(net) == ["cat", "dog"]
    assert class_names(Graph(input="x", input_shape=(2,), output="x", nodes=())) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"not a picture", "cannot be read as an image"),
        ("a.npy", b"\x93NUMPY broken", "cannot be read as an array"),
        ("a.txt", b"", "is no image by its ending"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_images(find_images([tmp_path / name]), graph())


def test_an_array_with_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read as an array"):
        load_images([tmp_path / "a.npy"], graph())


def test_arrays_that_do_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 5, 5), np.float32))
    with pytest.raises(ConfigError, match=r"has shape \(3, 5, 5\), the network takes \(3, 4, 4\)"):
        load_images([tmp_path / "a.npy"], graph())
    np.save(tmp_path / "a.npy", np.full((3, 4, 4), np.nan, np.float32))
    with pytest.raises(ConfigError, match="finite floating numbers"):
        load_images([tmp_path / "a.npy"], graph())


def test_missing_and_empty(tmp_path):
    with pytest.raises(ConfigError, match="there is no image"):
        find_images([tmp_path / "x.png"])
    with pytest.raises(ConfigError, match="holds no image"):
        find_images([tmp_path])
