import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.variants import frozen, gradients


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return out


class Reentrant(Body):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().forward, x, use_reentrant=True)
        return out


class Cut(Body):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * 2


def run(module: nn.Module, leaf: Tensor) -> Tensor | None:
    with frozen(module):
        return gradients(module(leaf)[0, 1], [leaf], "net")[0]


@pytest.fixture
def leaf() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("kind", [Body, Reentrant])
def test_gradient_is_autograds_and_nothing_is_left(kind: type[Body], leaf: Tensor) -> None:
    module = kind()
    (expected,) = torch.autograd.grad(Body.forward(module, leaf)[0, 1], leaf)
    found = run(module, leaf)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert leaf.grad is None
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_flags_come_back_when_the_network_fails() -> None:
    module = Body()
    module.head.bias.requires_grad_(False)

    def fails() -> None:
        with frozen(module):
            assert not any(p.requires_grad for p in module.parameters())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fails()
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_what_does_not_reach_is_none(leaf: Tensor) -> None:
    module = Body()
    other = torch.zeros(1, requires_grad=True)
    with frozen(module):
        found = gradients(module(leaf)[0, 0], [leaf, other], "net")
    assert found[0] is not None
    assert found[1] is None


def test_cut_gradient_is_one_line(leaf: Tensor) -> None:
    with pytest.raises(CnnvizError, match=r"net cuts its gradient .*occlude needs none"):
        run(Cut(), leaf)


def test_failing_backward_is_one_line(leaf: Tensor) -> None:
    class Net(Body):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Broken.apply(x))  # type: ignore[no-untyped-call]

    with pytest.raises(CnnvizError, match=r"the backward pass of net fails: .*; cnnviz occlude"):
        run(Net(), leaf)
