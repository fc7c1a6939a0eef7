"""The MS block against plain PyTorch, convolution by convolution; many encoders against one at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mixsyn_fast.models.mixsyn.blocks import MSBlock, MSConv2d, fold_convolutions, pooled_kernel
from torch import Tensor, nn

from mixsyn_fast import use_backend, use_plan

RESAMPLE = ("none", "down", "up")


def make(fin: int, fout: int, **options: object) -> MSBlock:
    """Return a block in float64, with biases that are not small."""
    torch.manual_seed(1)
    block = MSBlock(fin, fout, **options).double()  # type: ignore[arg-type]
    return block.eval()


def plain_conv(conv: MSConv2d, encoder: int) -> nn.Conv2d:
    """Return the convolution of one encoder, its spectral norm by the singular values themselves."""
    count = conv.regions
    weight = conv.weight.detach().chunk(count)[encoder]
    made = nn.Conv2d(
        weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2, bias=conv.bias is not None
    )
    if conv.spectral:
        weight = weight / torch.linalg.svdvals(weight.flatten(1))[0]
    made.weight = nn.Parameter(weight)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach().chunk(count)[encoder])
    return made


def plain_block(block: MSBlock, x: Tensor, encoder: int = 0) -> Tensor:
    """Return what section 4.2.1 describes, in plain PyTorch, for one encoder."""

    def activated(t: Tensor) -> Tensor:
        return F.leaky_relu(F.instance_norm(t) if block.norm == "instance" else t, 0.2)

    def sampled(t: Tensor, how: str) -> Tensor:
        if how != block.resample:
            return t
        return F.avg_pool2d(t, 2) if how == "down" else F.interpolate(t, scale_factor=2, mode="bilinear")

    h = plain_conv(block.conv_0, encoder)(sampled(activated(x), "up"))
    h = plain_conv(block.conv_1, encoder)(activated(sampled(h, "down")))
    shortcut = sampled(sampled(x, "up"), "down")
    return h + (shortcut if block.conv_s is None else plain_conv(block.conv_s, encoder)(shortcut))


def converge(module: nn.Module) -> None:
    """Run the power iterations to their end."""
    for conv in module.modules():
        if isinstance(conv, MSConv2d) and conv.spectral:
            conv.train()
            with torch.no_grad():
                for _ in range(300):
                    conv.normalised_weight()
            conv.eval()


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_a_block_is_the_papers(resample: str, norm: str, widths: tuple[int, int], size: tuple[int, int]) -> None:
    block = make(*widths, resample=resample, norm=norm)
    converge(block)
    x = torch.randn(2, widths[0], *size, dtype=torch.float64)
    expected = plain_block(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-8)
    with use_plan("dense"), use_backend("reference"):
        torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("resample", RESAMPLE)
def test_encoders_side_by_side_are_single_ones(resample: str) -> None:
    """A grouped convolution of three encoders, and of two of them, against one encoder at a time."""
    block = make(4, 6, resample=resample, norm="instance", regions=3)
    converge(block)
    parts = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    expected = torch.cat([plain_block(block, parts[:, i], i) for i in range(3)], 1)
    torch.testing.assert_close(block(parts.flatten(1, 2)), expected, rtol=1e-6, atol=1e-8)
    some = block(parts[:, [2, 0]].flatten(1, 2), which=torch.tensor([2, 0]))
    torch.testing.assert_close(some, torch.cat((expected[:, 12:], expected[:, :6]), 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (2, 2), (3, 3)])
def test_pooling_goes_into_the_kernel(size: tuple[int, int]) -> None:
    x, weight = torch.randn(2, 3, *size, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    expected = F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)
    torch.testing.assert_close(F.conv2d(x, pooled_kernel(weight), stride=2, padding=1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_plans_have_one_gradient(layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    found = []
    for plan, backend in (("auto", "auto"), ("dense", "reference")):
        block = make(4, 6, resample="down", norm="instance").to(memory_format=layout).train()  # type: ignore[call-overload]
        given = x.clone().requires_grad_()
        with use_plan(plan), use_backend(backend):
            block(given).square().sum().backward()
        found.append([given.grad, *(p.grad for p in block.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spectral_norm_is_torchs_for_each_encoder(layout: torch.memory_format) -> None:
    """One power iteration a forward, from the same vectors, and the same gradient as torch's own spectral norm."""
    torch.manual_seed(0)
    conv = MSConv2d(3, 5, 3, regions=2, spectral=True).double().to(memory_format=layout).train()  # type: ignore[call-overload]
    twins = []
    for i in range(2):
        twin = nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64)
        twin.weight = nn.Parameter(conv.weight.detach().chunk(2)[i].clone(memory_format=torch.contiguous_format))
        twin.bias = nn.Parameter(conv.bias.detach().chunk(2)[i].clone())
        twin = nn.utils.spectral_norm(twin)
        twin.weight_u, twin.weight_v = conv.u[i].clone(), conv.v[i].flatten().clone()
        twins.append(twin.train())
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    for _ in range(2):
        y, expected = conv(x), torch.cat([twin(part) for twin, part in zip(twins, x.chunk(2, 1), strict=True)], 1)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, torch.cat([t.weight_orig.grad for t in twins]), rtol=1e-8, atol=1e-8)


def test_all_encoders_iterate_in_training() -> None:
    """Also those that do not run: processes that meet other regions must keep the same vectors."""
    conv = MSConv2d(2, 4, 3, regions=3, spectral=True).train()
    before, twin = conv.u.clone(), copy.deepcopy(conv)
    conv(torch.randn(1, 4, 6, 6), which=torch.tensor([0, 2]))
    twin(torch.randn(1, 6, 6, 6))
    assert not torch.equal(conv.u[1], before[1])
    assert torch.equal(conv.u, twin.u) and torch.equal(conv.v, twin.v)
    conv.eval()
    before = conv.u.clone()
    conv(torch.randn(1, 6, 6, 6))
    assert torch.equal(conv.u, before), "no iteration in eval"


def test_fresh_networks_are_normalised() -> None:
    """Power iterations begin with the constructor: an untrained network in eval has no weights of thousands."""
    conv = MSConv2d(16, 16, 3, spectral=True).eval()
    sigma = torch.linalg.svdvals(conv.normalised_weight()[0].flatten(1))[0]
    assert 0.95 < float(sigma.detach()) < 1.2


def test_folding_changes_nothing() -> None:
    block = make(4, 6, resample="down", norm="instance", regions=2)
    folded = copy.deepcopy(block)
    fold_convolutions(folded)
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-12, atol=1e-12)
    names = set(folded.state_dict())
    plain = MSBlock(4, 6, resample="down", norm="instance", regions=2, spectral=False)
    assert names == set(plain.state_dict())
    fold_convolutions(folded)  # nothing left to fold
    torch.testing.assert_close(folded(x), block(x), rtol=1e-12, atol=1e-12)


def test_two_forwards_before_a_backward() -> None:
    block = make(4, 4, resample="down").train()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    (block(x).sum() + block(2 * x).sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in block.parameters())


def test_discriminator_blocks_can_be_differentiated_twice() -> None:
    block = MSBlock(2, 3, resample="down").double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(block, (x,))
