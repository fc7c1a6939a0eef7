r"""Multi-region style attention (Sec. 3.2): the codes of a transfer, corrected by how they relate to the target's.

.. math::

    Q = W_q(s'_r), \quad K = W_k(s_t), \quad V = W_v(s_t), \qquad
    M = \mathrm{softmax}(Q K^\top) \tag{4}

    s'_t = s'_r + \alpha\, M V \tag{5}

s_t being the target's codes and s'_r the same with the codes of some regions taken from a reference. There are no more than
some tens of regions, so it costs a thousandth of an encoder's pass.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AttentionConfig


class StyleAttention(nn.Module):
    """Multi-region style attention.

    A region that the target lacks has no code: it is attended to by none, and its own row stays as it is.
    """

    own_initialisation = True  # a small gain would leave the attention uniform

    def __init__(self, config: AttentionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AttentionConfig()
        length = config.style_length
        self.query, self.key, self.value = (nn.Linear(length, length, bias=False) for _ in range(3))
        self.alpha = nn.Parameter(torch.tensor(float(config.alpha)), requires_grad=config.learned)

    def forward(self, composed: Tensor, target: Tensor, present: Tensor) -> Tensor:
        """Return s'_t (B, K, S), Eq. 5.

        Args:
            composed: s'_r, (B, K, S).
            target: s_t, (B, K, S).
            present: (B, K) bool: regions that the target has.

        Raises:
            ValueError: a shape does not fit.
        """
        length = self.config.style_length
        if target.dim() != 3 or target.shape[2] != length:
            raise ValueError(f"target: expected shape (B, K, {length}), got {tuple(target.shape)}")
        if composed.shape != target.shape:
            raise ValueError(f"composed: expected shape {tuple(target.shape)} as target, got {tuple(composed.shape)}")
        if present.shape != target.shape[:2]:
            raise ValueError(f"present: expected shape {tuple(target.shape[:2])}, got {tuple(present.shape)}")
        present = present.to(torch.bool)
        # of an image without a region all keys take part, and the correction is thrown away: a softmax over nothing is NaN
        keys = (present | ~present.any(1, keepdim=True))[:, None]
        correction = F.scaled_dot_product_attention(
            self.query(composed), self.key(target), self.value(target), attn_mask=keys, scale=1.0
        )
        return composed + self.alpha * correction * present[..., None].to(correction.dtype)

    def matrix(self, composed: Tensor, target: Tensor, present: Tensor) -> Tensor:
        """Return M (B, K, K) of Eq. 4 for pictures; arguments as :meth:`forward`. Columns of absent regions are zero."""
        logits = self.query(composed) @ self.key(target).transpose(1, 2)
        kept = present.to(torch.bool)[:, None]
        return torch.softmax(logits.masked_fill(~kept, -torch.inf), 2).nan_to_num(0.0)


def composed_codes(target: Tensor, reference: Tensor, regions: Collection[int], reference_has: Tensor) -> Tensor:
    """Return s'_r of Sec. 3.2: the target's codes with those of some regions taken from a reference.

    A region that the reference lacks keeps the target's own code.

    Args:
        target: s_t, (B, K, S).
        reference: s_r, (B, K, S).
        regions: numbers of the regions to take.
        reference_has: (B, K) bool: regions that the reference has.
    """
    taken = torch.zeros(target.shape[1], dtype=torch.bool, device=target.device)
    taken[list(regions)] = True
    return torch.where((taken & reference_has.to(torch.bool))[..., None], reference, target)
