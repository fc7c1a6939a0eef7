r"""Logarithmic loss of MixSyn (Eq. 1 for masks, Eq. 3 for images), on logits: D is the sigmoid of what is passed.

Masks, M real, M' known and M'' random compositions:

.. math::

    L_A = \log D(M) + \alpha \log(1 - D(M')) + (1 - \alpha) \log(1 - D(M'')) \tag{1}

Images, I real, made from the real mask (I_M), from the known composition (I') and from the random one (I''):

.. math::

    L_A = \beta \log D(I) + (1 - \beta) \bigl[ \eta (\log(1 - D(I_M)) + \log(1 - D(I')))
          + (1 - \eta) \log(1 - D(I'')) \bigr] \tag{3}

The discriminator maximises L_A (its loss is -L_A), the generator minimises it. With the same weights, the generator's
non-saturating form, the default here, maximises :math:`\log D` of each fake in place of minimising :math:`\log(1 - D)`: the
same fixed points, but a gradient where the discriminator is sure (Goodfellow et al. 2014, section 3). `saturating=True` is
the equation as it is written.

The paper gives no values. By default every kind of fake weighs the same, and all fakes together as much as the real ones:
alpha = 1/2; eta = 1/2 and beta = 3/5 (1/5 for each of the three kinds of fake).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._scales import Logits, over_scales


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return value


def _real(logits: Logits) -> Tensor:
    """E[-log D]."""
    return over_scales(lambda t: F.softplus(-t).mean(), logits)


def _fake(logits: Logits) -> Tensor:
    """E[-log(1 - D)]."""
    return over_scales(lambda t: F.softplus(t).mean(), logits)


def _fool(logits: Logits, saturating: bool) -> Tensor:
    """What the generator minimises for one kind of fake: E[log(1 - D)], or E[-log D]."""
    return -_fake(logits) if saturating else _real(logits)


def discriminator_loss(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """Return E[-log D(x)] + E[-log(1 - D(G))], a scalar: one kind of fake.

    Args:
        real_logits: logits of D(x), any shape, or a list over scales (the mean of each, averaged over scales).
        fake_logits: logits of D(G), likewise.

    Raises:
        ValueError: no scale.
    """
    return _real(real_logits) + _fake(fake_logits)


def generator_loss(fake_logits: Logits, *, saturating: bool = False) -> Tensor:
    """Return E[-log D(G)], or E[log(1 - D(G))] with `saturating`; a scalar."""
    return _fool(fake_logits, saturating)


def mask_discriminator_loss(real: Logits, known: Logits, random: Logits, *, alpha: float = 0.5) -> Tensor:
    """Return -L_A of Eq. 1, a scalar.

    Args:
        real: logits of real masks, any shape, or a list over scales.
        known: logits of known compositions.
        random: logits of random compositions.
        alpha: share of the known ones among the fakes, in [0, 1].

    Raises:
        ValueError: alpha out of range.
    """
    alpha = _share("alpha", alpha)
    return _real(real) + alpha * _fake(known) + (1 - alpha) * _fake(random)


def mask_generator_loss(known: Logits, random: Logits, *, alpha: float = 0.5, saturating: bool = False) -> Tensor:
    """Return the generator's part of Eq. 1, a scalar (arguments as `mask_discriminator_loss`)."""
    alpha = _share("alpha", alpha)
    return alpha * _fool(known, saturating) + (1 - alpha) * _fool(random, saturating)


def image_discriminator_loss(
    real: Logits, known: Logits, approximated: Logits, random: Logits, *, beta: float = 0.6, eta: float = 0.5
) -> Tensor:
    """Return -L_A of Eq. 3, a scalar.

    Args:
        real: logits of real images, any shape, or a list over scales.
        known: logits of images made with the real mask.
        approximated: logits of images made with the generated known composition.
        random: logits of images made with the generated random composition.
        beta: weight of the real images, in [0, 1].
        eta: weight of each of the first two kinds of fake; the third has 1 - eta.

    Raises:
        ValueError: beta or eta out of range.
    """
    beta, eta = _share("beta", beta), _share("eta", eta)
    fakes = eta * (_fake(known) + _fake(approximated)) + (1 - eta) * _fake(random)
    return beta * _real(real) + (1 - beta) * fakes


def image_generator_loss(
    known: Logits,
    approximated: Logits,
    random: Logits,
    *,
    beta: float = 0.6,
    eta: float = 0.5,
    saturating: bool = False,
) -> Tensor:
    """Return the generator's part of Eq. 3, a scalar (arguments as `image_discriminator_loss`)."""
    beta, eta = _share("beta", beta), _share("eta", eta)
    first = _fool(known, saturating) + _fool(approximated, saturating)
    return (1 - beta) * (eta * first + (1 - eta) * _fool(random, saturating))
