import torch

from linearize.augment import augment


def crops(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    """Every crop of one image [C, H, W], cut out one by one."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    shifts = range(2 * padding + 1)
    return [padded[:, y : y + height, x : x + width] for y in shifts for x in shifts]


def test_every_result_is_a_crop_or_a_mirrored_crop_and_all_occur() -> None:
    image = torch.arange(1, 2 * 3 * 4 + 1, dtype=torch.uint8).reshape(2, 3, 4)
    rng = torch.Generator().manual_seed(0)
    batch = augment(image.expand(600, 2, 3, 4), padding=1, flip=True, rng=rng)
    assert batch.shape == (600, 2, 3, 4)
    assert batch.dtype == torch.uint8
    plain = {crop.contiguous().numpy().tobytes() for crop in crops(image, 1)}
    mirrored = {crop.flip(2).contiguous().numpy().tobytes() for crop in crops(image, 1)}
    seen = [result.contiguous().numpy().tobytes() for result in batch]
    assert set(seen) == plain | mirrored
    share = sum(result in mirrored for result in seen) / 600
    assert 0.4 < share < 0.6  # 0.5 plus or minus 5 standard deviations


def test_each_image_is_its_own_and_nothing_is_mirrored_without_flip() -> None:
    images = torch.randint(0, 256, (40, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = augment(images, padding=2, flip=False, rng=torch.Generator().manual_seed(2))
    for image, result in zip(images, batch, strict=True):
        assert any(torch.equal(result, crop) for crop in crops(image, 2))
