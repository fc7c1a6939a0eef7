"""StyleFusion's losses against their equations, and their gradients."""

from __future__ import annotations

import pytest
import torch
from mixsyn_fast.models.losses.stylefusion import (
    align_regularization,
    fusion_loss,
    localization_loss,
    mask_loss,
    perturbed,
)
from torch import Tensor


def soft_masks(batch: int = 2, side: int = 4, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, side, side, generator=rng, dtype=torch.float64).softmax(1)[:, :2]


def images(count: int = 3, batch: int = 2, side: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    return list(torch.randn(count, batch, 3, side, side, generator=rng, dtype=torch.float64))


def test_equation_3() -> None:
    m, a = soft_masks(seed=1), soft_masks(seed=2)
    per_image = []
    for i in range(2):
        d = sum(float((m[i, k] - a[i, k]).abs().sum()) for k in range(2))
        per_image.append(d / float((a[i, 0] + a[i, 1]).abs().sum()))
    assert mask_loss(m, a).item() == pytest.approx(sum(per_image) / 2, rel=1e-12)
    assert mask_loss(a, a).item() == 0
    # regions that are not there at all: as if they were one pixel
    assert mask_loss(torch.full((1, 2, 4, 4), 0.25), torch.zeros(1, 2, 4, 4)).item() == pytest.approx(8)


def test_equation_4() -> None:
    s, r = torch.randn(2, 3, 7)
    assert torch.allclose(perturbed(s, r, 0.1), s + 0.1 * (r - s), atol=1e-6)


def test_equation_5() -> None:
    image, first, second = images()
    m = soft_masks()
    terms = torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        # the second code may not change region 1, the first one not region 2
        terms[0] += (m[i, 0] * image[i] - m[i, 0] * second[i]).square().sum().sqrt() / m[i, 0].abs().sum()
        terms[1] += (m[i, 1] * image[i] - m[i, 1] * first[i]).square().sum().sqrt() / m[i, 1].abs().sum()
    found = localization_loss(image, first, second, m)
    assert torch.allclose(found, terms / 2, rtol=1e-12)
    rms = [[m[i, k].sum().sqrt() for k in range(2)] for i in range(2)]
    per_image = torch.stack(
        [localization_loss(*(t[i, None] for t in (image, first, second, m)), rms=True) for i in range(2)]
    )
    assert torch.allclose(localization_loss(image, first, second, m, rms=True), per_image.mean(0))
    alone = localization_loss(*(t[:1] for t in (image, first, second, m)))
    assert torch.allclose(per_image[0], alone * torch.stack(rms[0]))
    changed = first + 1
    assert torch.equal(localization_loss(image, changed, second, m)[0], found[0])
    assert localization_loss(image, first, second, torch.zeros_like(m)).tolist() == [0, 0]


def test_equations_6_and_7() -> None:
    q = torch.rand(3, 9)
    assert align_regularization(q).item() == pytest.approx(float(q.sum()) / 3, rel=1e-6)
    assert align_regularization(q[:, :0]).item() == 0
    s, s1, s2, w1, w2 = torch.rand(5, 3, 9)
    found = fusion_loss((s, s), (s1, s2), (w1, w2))
    for term, other, w in zip(found, (s1, s2), (w1, w2), strict=True):
        assert term.item() == pytest.approx(float(sum((w[i] * (s[i] - other[i])).norm() for i in range(3))) / 3, rel=1e-6)


def test_gradients() -> None:
    """Against finite differences; what is only measured by gets none; a distance of zero has none either."""
    m, target = soft_masks(seed=1).requires_grad_(), soft_masks(seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mask_loss(m, target), (m,))
    mask_loss(m, target).backward()
    assert target.grad is None
    three = [image.requires_grad_() for image in images()]
    assert torch.autograd.gradcheck(lambda *t: localization_loss(*t, target), three)
    localization_loss(*three, target).sum().backward()
    assert target.grad is None and all(image.grad is not None for image in three)
    a, b, s1, s2, w1, w2 = torch.rand(6, 2, 5, dtype=torch.float64).requires_grad_().unbind(0)
    assert torch.autograd.gradcheck(lambda a, b, s1: fusion_loss((a, b), (s1, s2), (w1, w2)), (a, b, s1))
    same = s1.detach().clone().requires_grad_()
    fusion_loss((same, same), (s1.detach(), s2.detach()), (w1, w2))[0].backward()
    assert same.grad is not None and not same.grad.any()


def test_bad_shapes() -> None:
    m, (image, first, second) = soft_masks(), images()
    s = torch.zeros(2, 5)
    for call, words in (
        (lambda: mask_loss(m[:, :1], m[:, :1]), r"masks: expected shape \(B, 2, H, W\)"),
        (lambda: mask_loss(m, m[:1]), "as target"),
        (lambda: localization_loss(image, first[:1], second, m), "first: expected shape"),
        (lambda: localization_loss(image, first, second, m[..., :2]), r"masks: expected shape \(2, 2, 4, 4\)"),
        (lambda: fusion_loss((s, s), (s, s[:, :2]), (s, s)), r"codes\[1\], sources\[1\], weights\[1\]: expected one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
