"""Whether a discriminator teaches anything: the two figures, by hand, and what every model's task gives to them."""

from __future__ import annotations

import math

import pytest
import torch
from mixsyn_fast.models.training.judged import Judged, figures_of, image_gradients


def test_the_figures() -> None:
    """Of all pictures together, whatever the batches; losses are means, so gradients are taken times the batch."""
    first = Judged(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4]) / 2, torch.tensor([3.0, 4.0]) / 2)
    last = Judged(torch.tensor([6.0]), torch.tensor([1.2]), torch.tensor([12.0]))
    found = figures_of([{"": first, "image_": first}, {"": last}])
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    assert found["real_logit_std"] == pytest.approx(deviation) and found["gan_gradient_ratio"] == pytest.approx(0.1)
    assert found["image_real_logit_std"] == pytest.approx(math.sqrt(0.5))


def test_figures_that_nothing_says() -> None:
    """One picture has no deviation; no ratio without both gradients, or to none at all."""
    norms = torch.ones(1)
    assert figures_of([]) == figures_of([{}]) == figures_of([{"": Judged(norms, norms, None)}]) == {}
    assert figures_of([{"": Judged(norms, None, norms)}]) == figures_of([{"": Judged(norms, norms, 0 * norms)}]) == {}
    assert figures_of([{"": Judged(torch.tensor([1.0, 1.0]))}]) == {"real_logit_std": 0.0}


def test_gradients_of_images() -> None:
    image = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1)
    expected = torch.tensor([3.0, 0.5]) * math.sqrt(48)
    torch.testing.assert_close(image_gradients((image * weights).sum(), image), expected)
    assert image_gradients(torch.ones(()), image).tolist() == [0, 0]
    assert image_gradients(torch.ones((), requires_grad=True), image).tolist() == [0, 0]
