"""RegionPool2d, ClassCodes, ClassEmbedding, and SPADE on maps of class vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsyn_fast import RegionMap, masked_roi_pool, use_backend, use_plan
from mixsyn_fast.layers import ClassCodes, ClassEmbedding, ClassLatents, RegionPool2d, SPADENorm
from tests.compare import relative_error

BATCH, REGIONS, LENGTH = 2, 5, 6


def region_map(seed: int = 0, *, ignored: bool = True) -> RegionMap:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, REGIONS - 1, (BATCH, 4, 4), generator=generator)  # the last region is absent
    labels = coarse.repeat_interleave(5, 1).repeat_interleave(6, 2)
    if ignored:
        labels[:, :3, :4] = 255
    return RegionMap(labels, REGIONS, ignore_index=255)


def randomised(layer: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.4)
    return layer


def test_region_pool_is_the_op() -> None:
    features, regions = torch.randn(BATCH, 7, 10, 12), region_map()
    for mode in ("max", "mean"):
        expected, position = masked_roi_pool(features, regions, mode=mode)
        assert torch.equal(RegionPool2d(mode)(features, regions), expected)
        assert torch.equal(RegionPool2d(mode)(features, regions.onehot()), expected)
    pooled, found = RegionPool2d(return_positions=True)([features], regions)
    assert torch.equal(found[0], masked_roi_pool(features, regions)[1]) and len(pooled) == 1
    assert str(RegionPool2d(return_positions=True)) == "RegionPool2d(mode='max', return_positions=True)"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RegionPool2d("sum"), "mode: expected 'max' or 'mean', got 'sum'"),
        (lambda: RegionPool2d("mean", return_positions=True), "return_positions"),
        (lambda: RegionPool2d()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3)), "regions: expected a mask"),
        (lambda: ClassCodes([], 4), "channels: expected at least one level"),
        (lambda: ClassCodes([3], 4)([], region_map()), "levels: expected 1, got 0"),
        (lambda: ClassCodes([3], 4)([torch.zeros(2, 4, 3, 3)], region_map()), r"levels\[0\]: expected shape \(B, 3, H, W\)"),
        (
            lambda: ClassCodes([3], 4)([torch.zeros(2, 3, 4, 4)], region_map().labels),
            "ClassCodes: regions: expected a RegionMap",
        ),
        (
            lambda: ClassCodes([3], 4)([torch.zeros(2, 3, 4, 4)], RegionMap.soft(torch.ones(2, 3, 4, 4))),
            "expected a hard map",
        ),
        (lambda: ClassEmbedding(REGIONS, LENGTH)(torch.zeros(2, REGIONS, 3)), "codes: expected shape"),
    ],
)
def test_bad_arguments(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# --- codes of classes --------------------------------------------------------------------------------------------------


def test_class_codes_as_written_in_the_paper() -> None:
    """Eq. 14-18 class by class, with masks."""
    regions = region_map()
    heads = randomised(ClassCodes((3, 4), LENGTH)).double()
    levels = [torch.randn(BATCH, 3, 10, 12, dtype=torch.float64), torch.randn(BATCH, 4, 5, 6, dtype=torch.float64)]
    latents = heads(levels, regions)
    total = 0.0
    for number, level in enumerate(levels, 1):
        mu, var = getattr(heads, f"fc_mu{number}"), getattr(heads, f"fc_var{number}")
        labels = F.interpolate(regions.labels[:, None].double(), size=level.shape[2:])[:, 0]
        for b in range(BATCH):
            divergences = []
            for k in range(REGIONS):
                own = level[b][:, labels[b] == k]
                assert bool(latents.present[number - 1][b, k]) == (own.shape[1] > 0)
                mean, log_variance = latents.mean[number - 1][b, k], latents.log_variance[number - 1][b, k]
                if own.shape[1] == 0:
                    assert not bool(mean.any()) and not bool(log_variance.any())
                    continue
                pooled = F.leaky_relu(own.amax(1), 0.2)
                torch.testing.assert_close(mean, mu(pooled))
                torch.testing.assert_close(log_variance, var(pooled))
                divergences.append(0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum())
            total = total + torch.stack(divergences).mean()
    torch.testing.assert_close(latents.kld(), total)


def test_an_absent_class_gets_no_gradient_and_comes_from_the_prior() -> None:
    regions = region_map()
    heads = randomised(ClassCodes((3,), LENGTH))
    level = torch.randn(BATCH, 3, 10, 12, requires_grad=True)
    latents = heads([level], regions)
    latents.kld().backward()
    assert level.grad is not None and bool(torch.isfinite(level.grad).all())
    touched = (level.grad != 0).any(1).sum((1, 2))
    assert bool((touched <= 3 * (REGIONS - 1)).all()), "only the maxima of the classes present"
    generator = torch.Generator().manual_seed(3)
    (codes,) = latents.sample(generator)
    noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(codes[:, -1], noise[:, -1])  # the last class is absent
    assert not torch.allclose(codes[:, 0], noise[:, 0])


def test_no_class_at_all_adds_nothing() -> None:
    nothing = RegionMap(torch.full((BATCH, 8, 8), 255), REGIONS, ignore_index=255)
    latents = ClassCodes((3,), LENGTH)([torch.randn(BATCH, 3, 4, 4)], nothing)
    assert isinstance(latents, ClassLatents) and float(latents.kld().detach()) == 0.0


def test_masks_and_other_dtypes() -> None:
    regions = region_map(ignored=False)
    heads = randomised(ClassCodes((3,), LENGTH))
    level = torch.randn(BATCH, 3, 10, 12)
    expected = heads([level], regions)
    assert torch.equal(heads([level], regions.onehot()).mean[0], expected.mean[0])
    half = heads([level.bfloat16()], regions)
    assert half.mean[0].dtype == torch.float32 and relative_error(half.mean[0], expected.mean[0]) < 1e-2


def test_names_of_the_published_encoder() -> None:
    names = {f"fc_{kind}{level}.{part}" for kind in ("mu", "var") for level in (1, 2) for part in ("weight", "bias")}
    assert set(ClassCodes((3, 4), LENGTH).state_dict()) == names
    assert set(ClassEmbedding(REGIONS, LENGTH).state_dict()) == {"weight"}


# --- SPADE on a map of class vectors -----------------------------------------------------------------------------------


def cse_map(regions: RegionMap, vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """Eq. 12 with the map made."""
    return torch.einsum("bkhw,bkd->bdhw", regions.onehot(size, vectors.dtype), vectors)


@pytest.mark.parametrize("plan", ["table", "auto", "dense"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_spade_on_class_vectors(training: bool, soft: bool, plan: str) -> None:
    regions = region_map()
    if soft:
        regions = RegionMap.soft(torch.rand(BATCH, REGIONS, 20, 24, dtype=torch.float64))
    embedding = randomised(ClassEmbedding(REGIONS, LENGTH)).double()
    layer = randomised(SPADENorm(4, LENGTH, hidden=3, norm="instance")).double().train(training)
    codes = torch.randn(BATCH, REGIONS, LENGTH, dtype=torch.float64, requires_grad=True)
    for size in ((20, 24), (9, 7), (1, 2)):
        x = torch.randn(BATCH, 4, *size, dtype=torch.float64, requires_grad=True)
        grad = torch.randn_like(x)
        leaves = [x, codes, embedding.weight, *layer.parameters()]
        hidden = layer.mlp_shared(cse_map(regions, embedding(codes), size))
        expected = layer.param_free_norm(x) * (1 + layer.mlp_gamma(hidden)) + layer.mlp_beta(hidden)
        with use_plan(plan):
            found = layer(x, regions, class_vectors=embedding(codes))
        assert relative_error(found, expected) < 1e-12
        for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
            assert relative_error(a, b) < 1e-11
    with torch.no_grad(), use_plan(plan):  # the form that keeps products of the weights
        assert relative_error(layer(x, regions, class_vectors=embedding(codes)), expected) < 1e-12


def test_plain_form_and_one_image() -> None:
    regions = RegionMap(region_map().labels[:1], REGIONS, ignore_index=-1)
    layer = randomised(SPADENorm(4, LENGTH, hidden=3, norm="instance")).eval()
    vectors, x = torch.randn(1, REGIONS, LENGTH), torch.randn(1, 4, 20, 24)
    with use_plan("table"):
        found = layer(x, regions, class_vectors=vectors, negative_slope=0.2)
    with use_plan("dense"), use_backend("reference"):
        assert relative_error(found, layer(x, regions, class_vectors=vectors, negative_slope=0.2)) < 1e-5


@pytest.mark.parametrize(
    ("vectors", "edges", "words"),
    [
        (torch.zeros(BATCH, REGIONS, LENGTH + 1), False, "class_vectors: expected shape"),
        (torch.zeros(1, REGIONS, LENGTH), False, "class_vectors: expected shape"),
        (torch.zeros(BATCH, REGIONS, LENGTH, device="meta"), False, "class_vectors: expected device cpu"),
        (torch.zeros(BATCH, REGIONS, LENGTH), True, "expected a map without edges"),
    ],
)
def test_bad_class_vectors(vectors: Tensor, edges: bool, words: str) -> None:
    labels = torch.zeros(BATCH, 8, 8, dtype=torch.int64)
    regions = RegionMap(labels, REGIONS, edges=torch.zeros(BATCH, 8, 8, dtype=torch.bool) if edges else None)
    with pytest.raises(ValueError, match=words):
        SPADENorm(4, LENGTH)(torch.zeros(BATCH, 4, 8, 8), regions, class_vectors=vectors)
