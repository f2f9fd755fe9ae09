"""Woodbury's identity on Gauss-Newton matrices, against dense answers (float64)."""

import pytest
import torch
from torch.nn import functional as F

from metagrad import Composed, Dense, Proximal, Woodbury, tree
from metagrad.implicit import Operator, Problem
from metagrad.implicit.linear import solve


def network(phi, theta, data):
    """Four inputs, three tanh units, two or three outputs."""
    return torch.tanh(data[0] @ phi["in"]) @ phi["out"] + phi["bias"]


LAM = {
    "proximal": Proximal(0.7),
    "scalar": lambda phi, theta: theta["lam"] / 2 * sum((phi[k] - theta[k]).square().sum() for k in phi),
    "per tensor": lambda phi, theta: sum(theta["lam_" + k] / 2 * (phi[k] - theta[k]).square().sum() for k in phi),
    "per parameter": lambda phi, theta: sum((theta["Lam_" + k] / 2 * (phi[k] - theta[k]).square()).sum() for k in phi),
}


LOSS = {
    "cross-entropy": lambda outputs, data: F.cross_entropy(outputs, data[1]),
    "squared": lambda outputs, data: (outputs - F.one_hot(data[1], 3)).square().mean(),
}


def gauss_newton(loss, lam, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)  # noqa: E731
    shapes = {"in": (4, 3), "out": (3, 3), "bias": (3,)}
    phi = {name: draw(3, *shape) for name, shape in shapes.items()}
    theta = {name: draw(*shape) for name, shape in shapes.items()} | {"lam": torch.tensor(0.5, dtype=dtype)}
    theta |= {"lam_" + name: draw(1)[0].exp() for name in shapes}
    theta |= {"Lam_" + name: draw(*shape).exp() for name, shape in shapes.items()}
    data = draw(3, 6, 4), torch.randint(3, (3, 6), generator=g)
    objective = Composed(network, LOSS.get(loss, loss), LAM.get(lam, lam))
    return Problem(objective, theta, data).curvature(phi, "gauss_newton"), {k: draw(*v.shape) for k, v in phi.items()}


@pytest.mark.parametrize("lam", LAM)
@pytest.mark.parametrize("loss", LOSS)
def test_woodbury_is_the_dense_solution_of_gauss_newton(loss, lam):
    operator, b = gauss_newton(loss, lam)
    found, exact = solve(Woodbury(), operator, b), solve(Dense(), operator, b)
    assert found.residual.max() < 1e-13
    assert exact.residual.max() < 1e-13
    for name, leaf in exact.value.items():
        torch.testing.assert_close(found.value[name], leaf, rtol=1e-8, atol=1e-12)
    # A softmax does not see what is added to all outputs of an example.
    assert found.steps.tolist() == [6 * (2 if loss == "cross-entropy" else 3) + 1] * 3
    assert (found.min_curvature >= exact.min_curvature).all()
    torch.testing.assert_close(found.size, tree.norm(b))


def test_the_parts_of_gauss_newton_make_up_the_operator():
    operator, v = gauss_newton("cross-entropy", "per parameter")
    parts = operator.parts
    assert parts.shape == (3, 6, 3)
    whole = parts.vjp(parts.output_hessian(parts.jvp(v)))
    for name, leaf in operator(v).items():
        torch.testing.assert_close(whole[name] + operator.shift[name] * v[name], leaf, rtol=1e-12, atol=1e-14)
    w = torch.randn(3, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tree.dot(parts.vjp(w), v), (w * parts.jvp(v)).flatten(1).sum(1))


def test_woodbury_in_float32_is_as_exact_as_float32():
    operator, b = gauss_newton("cross-entropy", "per tensor", torch.float32)
    found = solve(Woodbury(), operator, b)
    assert found.residual.max() < 2e-6
    assert found.value["in"].dtype == torch.float32


def test_a_loss_that_hardly_bends_somewhere_still_counts():
    """With a weak shift, what B adds there is far from nothing: only its rounding may be dropped."""
    weights = torch.logspace(-13, 0, 3).double()
    made = gauss_newton(lambda outputs, data: (weights * outputs.square()).sum(), Proximal(1e-6))
    assert solve(Woodbury(), *made).residual.max() < 1e-8


def test_woodbury_says_what_it_lacks():
    operator, b = gauss_newton("squared", "scalar")
    with pytest.raises(ValueError, match="curvature='gauss_newton' and a Composed objective"):
        Woodbury()(Operator(operator.matvec, operator.shift), b)
    with pytest.raises(ValueError, match=r"examples × outputs = 18 is beyond .*max_size=17: use CG"):
        Woodbury(max_size=17)(operator, b)
    for regulariser in (None, lambda phi, theta: phi["in"].square().sum()):
        with pytest.raises(ValueError, match="curves upwards in every parameter"):
            Woodbury()(*gauss_newton("squared", regulariser))
    with pytest.raises(ValueError, match="not convex in the outputs: use curvature='hessian'"):
        Woodbury()(*gauss_newton(lambda outputs, data: outputs.sin().sum(), "scalar"))
