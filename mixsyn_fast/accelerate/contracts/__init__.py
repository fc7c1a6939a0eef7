"""Kinds of layers of published models: how each is recognised, what its parts must be, and our form of it.

A new family is one more :class:`Contract` in :data:`CONTRACTS`. Attributes, parameters and signature only point to a kind;
whether the layer computes the published formula is decided by running it (:mod:`..probe`).
"""

from __future__ import annotations

from torch import nn

from .checks import hooked, original_class, positional, required
from .clade import CLADE
from .contract import Contract, Options, Verdict
from .forms import SpadeForm
from .instance import BY_INSTANCE
from .sean import SEAN, CodesAt, codes_in
from .spade import SPADE
from .style_encoder import STYLE_ENCODER

__all__ = [
    "CONTRACTS",
    "CodesAt",
    "Contract",
    "Options",
    "SpadeForm",
    "Verdict",
    "codes_in",
    "contract_of",
    "hooked",
    "original_class",
    "positional",
    "required",
]

CONTRACTS: dict[str, Contract] = {contract.kind: contract for contract in (SEAN, SPADE, CLADE, STYLE_ENCODER, BY_INSTANCE)}
"""By kind; a module is of the first kind that recognises it."""


def contract_of(module: nn.Module) -> Contract | None:
    """Return the contract that the module's attributes point to, or None."""
    return next((contract for contract in CONTRACTS.values() if contract.recognises(module)), None)
