from pathlib import Path

import pytest
import safetensors.torch
import torch

from linearize.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from linearize.errors import CheckpointError
from linearize.files import save_tensors
from linearize.networks import build_network
from linearize.relu_mask import get_relu_mask, layer_counts, relu_total, set_relu_mask

METADATA = {"network": "resnet18", "width": 4, "num_classes": 3, "input_shape": [1, 8, 8], "dataset": "digits"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    model = build_network("resnet18", 4, 3, (1, 8, 8), seed=1)
    kept = torch.rand(relu_total(model), generator=torch.Generator().manual_seed(0)) < 0.25
    set_relu_mask(model, kept)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, METADATA)
    return path, model


def test_weights_masks_and_metadata_come_back(saved: tuple[Path, torch.nn.Module]) -> None:
    path, model = saved
    loaded, metadata = load_checkpoint(path)
    assert metadata.items() >= METADATA.items()
    assert metadata["relu_total"] == 1920
    assert metadata["relu_count"] == int(get_relu_mask(model).sum())
    assert metadata["layer_counts"] == layer_counts(model)
    assert read_metadata(path) == metadata
    assert torch.equal(get_relu_mask(loaded), get_relu_mask(model))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_truncated_file_is_named(saved: tuple[Path, torch.nn.Module], size: int) -> None:
    path, _ = saved
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or not a safetensors file .*run again"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or not a safetensors file"):
        read_metadata(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"b\.safetensors: no such file; run the stage that writes it"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"c\.safetensors: a safetensors file, but not written by this program"):
        load_checkpoint(path)
    save_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(
        CheckpointError, match=r"not a network checkpoint, its header lacks network, width, num_classes"
    ):
        load_checkpoint(path)


def test_tensors_of_another_network_are_refused(saved: tuple[Path, torch.nn.Module]) -> None:
    path, model = saved
    save_checkpoint(path, model, {**METADATA, "width": 8})
    with pytest.raises(CheckpointError, match=r"the tensors do not fit the network of the header") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    save_checkpoint(path, model, {**METADATA, "network": "vgg"})
    with pytest.raises(CheckpointError, match=r"the tensors do not fit the network of the header \(network\.name must"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = saved
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, model, {**METADATA, "dataset": "other"})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
