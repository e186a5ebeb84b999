"""Corruptions are what they say, the same on every run, stronger with severity, and do what JPEG does."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import DataError
from gossamer.measure import Corruption, corruptions, corruptions_of_each
from gossamer.measure.corruption.blurs import defocus_blur, gaussian_blur, motion_blur
from gossamer.measure.corruption.jpeg import jpeg
from gossamer.measure.corruption.noises import gaussian_noise, impulse_noise, shot_noise
from gossamer.measure.corruption.tones import contrast, pixelate
from gossamer.measure.robustness.chance import keys_of

KINDS = tuple(Corruption)


def _images(count: int = 6, channels: int = 1, size: int = 28) -> Tensor:
    """Smooth shapes with edges."""
    torch.manual_seed(0)
    rough = torch.rand(count, channels, 4, 4)
    smooth = F.interpolate(rough, size=(size, size), mode="bilinear")
    return torch.where(smooth > 0.6, smooth, 0.0).clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_stay_images_and_severity_changes_them_more(kind: Corruption, channels: int) -> None:
    images = _images(8, channels, 32)
    keys = keys_of(0, kind.value, torch.arange(8))
    changed = []
    for severity in range(1, 6):
        made = kind.of(images, severity, keys)
        assert made.shape == images.shape
        assert made.dtype == images.dtype
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
        changed.append(float((made - images).square().mean()))
    assert changed[0] > 0
    assert changed[4] > changed[0]
    assert all(b > 0.5 * a for a, b in itertools.pairwise(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_its_own_chance_and_the_same_every_time(kind: Corruption) -> None:
    images = _images(5)
    whole = kind.of(images, 3, keys_of(7, kind.value, torch.arange(5)))
    again = kind.of(images[2:4], 3, keys_of(7, kind.value, torch.tensor([2, 3])))
    torch.testing.assert_close(again, whole[2:4], atol=1e-6, rtol=0)


def test_noises_have_their_moments() -> None:
    grey = torch.full((4, 1, 64, 64), 0.5)
    keys = keys_of(1, "noise", torch.arange(4))
    noisy = gaussian_noise(grey, keys, 0.1)
    assert abs(float(noisy.mean()) - 0.5) < 0.004
    assert abs(float(noisy.std()) - 0.1) < 0.004
    shots = shot_noise(grey, keys, 50.0) * 50
    assert float(shots.min()) >= 0
    torch.testing.assert_close(shots, shots.round(), atol=1e-4, rtol=0)
    assert abs(float(shots.mean()) - 25) < 0.25
    assert abs(float(shots.var()) - 25) < 1.5  # a Poisson variable's variance is its mean
    specks = impulse_noise(grey, keys, 0.07)
    assert abs(float((specks == 0).float().mean()) - 0.035) < 0.006
    assert abs(float((specks == 1).float().mean()) - 0.035) < 0.006


@pytest.mark.parametrize("blur", [defocus_blur, gaussian_blur, motion_blur])
def test_blurs_keep_flat_images_and_the_mean_of_a_spot(blur: object) -> None:
    assert callable(blur)
    keys = keys_of(0, "blur", torch.arange(3))
    flat = torch.full((3, 2, 20, 20), 0.3)
    torch.testing.assert_close(blur(flat, keys, 1.5), flat)
    spot = torch.zeros(3, 1, 21, 21)
    spot[:, :, 10, 10] = 1
    torch.testing.assert_close(blur(spot, keys, 1.5).sum((1, 2, 3)), torch.ones(3))


def test_a_gaussian_blur_has_its_deviation_and_motion_its_length() -> None:
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1
    keys = keys_of(0, "blur", torch.arange(1))
    places = torch.arange(41.0) - 20
    across = gaussian_blur(spot, keys, 2.0)[0, 0].sum(0)
    assert abs(float((across * places**2).sum()) - 4) < 0.05
    line = motion_blur(spot, keys, 12.0)[0, 0]
    variance = (line * (places[:, None] ** 2 + places[None] ** 2)).sum()
    assert abs(float(variance) - 12**2 / 12) < 1.5  # that of a segment of length 12, and of bilinear edges


def test_contrast_and_pixels_have_closed_forms() -> None:
    images = torch.rand(3, 2, 8, 8)
    keys = keys_of(0, "x", torch.arange(3))
    half = contrast(images, keys, 0.5)
    torch.testing.assert_close(half.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(half.std((2, 3)), images.std((2, 3)) / 2)
    torch.testing.assert_close(pixelate(images, keys, 0.5)[:, :, ::2, ::2], F.avg_pool2d(images, 2))


@pytest.mark.parametrize("quality", [10, 40, 80, 95])
@pytest.mark.parametrize("size", [24, 28])
def test_jpeg_of_grey_images_is_what_an_encoder_and_decoder_give_but_for_ties(quality: int, size: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    torch.manual_seed(1)
    smooth = F.interpolate(torch.rand(12, 1, 5, 5), size=(size, size), mode="bilinear")
    images = (smooth + 0.1 * torch.randn(12, 1, size, size)).clamp(0, 1).mul(255).round().div(255)
    ours = jpeg(images, quality).mul(255).round()
    apart = lost = 0.0
    for image, mine in zip(images, ours, strict=True):
        buffer = io.BytesIO()
        pixels = image[0].mul(255).round().to(torch.uint8).numpy()
        image_module.fromarray(pixels, "L").save(buffer, "JPEG", quality=quality)
        theirs = torch.from_numpy(np.asarray(image_module.open(buffer)).astype(np.float32))
        apart += float((mine[0] - theirs).abs().mean())
        lost += float((mine[0] - torch.from_numpy(pixels)).abs().mean())
    # Encoders compute in integers, so a coefficient near half a step may round the other way.
    assert apart < 0.1 * lost + 12 * 0.2


def test_jpeg_keeps_a_block_whose_coefficients_are_on_the_grid() -> None:
    # One coefficient, (0, 1), of 3 steps of 11 at quality 50: its cosine comes back as it went in.
    i = torch.arange(8, dtype=torch.float64)
    wave = 0.5 * math.sqrt(1 / 8) * torch.cos(math.pi * (2 * i + 1) / 16)
    block = 3 * 11 * wave[None].expand(8, 8)
    levels = (block + 128).round()
    made = jpeg((levels / 255)[None, None], 50) * 255
    assert float((made[0, 0] - levels).abs().max()) <= 1


def test_colour_jpeg_keeps_greys_grey_and_quality_100_keeps_smooth_colours() -> None:
    grey = _images(3).expand(-1, 3, -1, -1)
    made = jpeg(grey, 60)
    assert float((made - made.mean(1, keepdim=True)).abs().max()) < 2.5 / 255
    smooth = F.interpolate(torch.rand(2, 3, 2, 2), size=(27, 30), mode="bilinear")
    assert float((jpeg(smooth, 100) - smooth).abs().mean()) < 2.5 / 255


def test_the_document_has_the_keys_that_pages_read_and_networks_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 3)).train()
    images = _images(9)
    with torch.no_grad():
        targets = model.eval()(images).argmax(1)
    model.train()
    found = corruptions(model, images, targets, severities=[1, 5], batch=4)
    assert found == corruptions(model, images, targets, severities=[1, 5])
    document = found.to_json()
    assert document["clean"] == 1.0
    assert len(document["rows"]) == 2 * len(KINDS)
    assert set(document["rows"][0]) == {"corruption", "severity", "accuracy"}
    assert set(document["mean"]) == {"1", "5"}
    assert document["mean"]["5"] <= document["mean"]["1"] <= 1.0
    assert model.training


def test_bad_images_are_refused() -> None:
    model, images, targets = nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), _images(3), torch.tensor([0, 1, 2])
    for inputs, labels, settings, what in (
        (images * 300, targets, {}, "inputs: found values"),
        (images.flatten(1), targets, {}, "expected images"),
        (images, targets + 3, {}, "expected classes below 3"),
        (images, targets, {"severities": [0]}, "from 1 to 5"),
        (images, targets, {"kinds": []}, "found 0 kinds"),
        (images, targets, {"kinds": ["fog"]}, "members of Corruption"),
    ):
        with pytest.raises(DataError, match=what):
            corruptions(model, inputs, labels, **settings)  # type: ignore[arg-type]


def test_networks_measured_together_get_the_figures_they_get_alone() -> None:
    images, targets = _images(12), torch.arange(12) % 3
    torch.manual_seed(1)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(784, 3)) for _ in range(3)]
    together = corruptions_of_each(models, images, targets, seed=5, batch=5)
    assert together == [corruptions(m, images, targets, seed=5, batch=5) for m in models]
    assert corruptions_of_each([], images, targets, severities=[1]) == []


def test_networks_that_overwrite_images_leave_the_others_alone() -> None:
    images, targets = _images(12), torch.arange(12) % 3
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))

    def overwriting(z: Tensor) -> Tensor:
        made: Tensor = plain(z)
        z.zero_()
        return made

    alone = corruptions(plain, images, targets, severities=[3])
    assert corruptions_of_each([overwriting, plain, overwriting], images, targets, severities=[3]) == [alone] * 3


@pytest.mark.parametrize("models", [nn.Sequential(nn.Flatten()), {"a": nn.Flatten()}, (n for n in ()), nn.Flatten()])
def test_what_is_no_list_of_networks_is_refused(models: object) -> None:
    with pytest.raises(DataError, match=r"models: found .*, expected a list of networks"):
        corruptions_of_each(models, _images(2), torch.zeros(2, dtype=torch.int64))  # type: ignore[arg-type]
