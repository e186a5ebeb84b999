"""Denil prediction against numpy's solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoding.test_ridge import kernel
from methods.harness import one, planned_on, source_of

from gossamer.drive import run
from gossamer.drive.one_shot import plan_method
from gossamer.encoding import Concat, Dense, Encoding, KernelBasis, LowRank, Role
from gossamer.errors import CompositionError, DataError
from gossamer.methods.prune import Magnitude
from gossamer.methods.share import Denil, KMeans
from gossamer.network import attach, attached


def smooth(rows: int, seed: int = 0) -> torch.Tensor:
    """Rows that are sums of a few wide bumps on a grid of 12 × 12."""
    random = np.random.default_rng(seed)
    k = kernel((12, 12), (3.0, 3.0))
    return torch.from_numpy(random.normal(size=(rows, 20)) @ k[random.choice(144, 20, replace=False)]).float()


def members(tree: Encoding) -> list[LowRank]:
    assert isinstance(tree, Concat)
    assert all(isinstance(m, LowRank) for m in tree.members)
    return list(tree.members)  # type: ignore[arg-type]


def test_each_group_is_the_least_squares_fit_by_a_ridge_regression_on_landmarks_of_its_own() -> None:
    w = torch.randn(25, 144, generator=torch.Generator().manual_seed(0))
    tree = one(Denil(stored=0.25, grid=(12, 12), sigma=2.0, ridge=0.05, groups=4), w)
    k, row, seen = kernel((12, 12), (2.0, 2.0)), 0, set()
    for member in members(tree):
        v = member.v
        assert isinstance(v, KernelBasis)
        at = v.positions().numpy()
        seen.add(at.tobytes())
        expected = np.linalg.solve(k[np.ix_(at, at)] + 0.05 * np.eye(36), k[at])
        np.testing.assert_allclose(v.to_dense().numpy(), expected, atol=1e-6)
        rows = w[row : row + member.dense_shape()[0]].double().numpy()
        fit = np.linalg.lstsq(expected.T, rows.T, rcond=None)[0].T
        np.testing.assert_allclose(member.to_dense().numpy(), fit @ expected, atol=1e-4)
        row += len(rows)
    assert row == 25
    assert len(seen) == 4
    assert [m.dense_shape()[0] for m in members(tree)] == [7, 6, 6, 6]


def test_smooth_rows_are_predicted_from_a_quarter_and_noise_is_not() -> None:
    def left(w: torch.Tensor) -> float:
        found = one(Denil(stored=0.25, grid=(12, 12), sigma=3.0, ridge=1e-6), w).to_dense()
        return float((found - w).norm() / w.norm())

    assert left(smooth(30)) < 0.02
    assert left(torch.randn(30, 144, generator=torch.Generator().manual_seed(1))) > 0.7


def test_all_stored_is_exact_up_to_rounding() -> None:
    w = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(Denil(stored=1.0), w).to_dense(), w, atol=1e-4, rtol=1e-4)


def test_only_the_stored_values_are_leaves_and_parameters() -> None:
    w = smooth(20)
    tree = one(Denil(stored=0.05, grid=(12, 12)), w)
    leaves = list(tree.leaves())
    assert sum(leaf.tensor.numel() for leaf in leaves) == 20 * 7
    assert {leaf.role for leaf in leaves} == {Role.TRAINABLE}
    model = torch.nn.Linear(144, 20)
    spec = source_of({"weight": w}).specs()
    net = attach(model, spec, {"weight": tree})
    assert sum(p.numel() for n, p in net.named_parameters() if n != "bias") == 20 * 7
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch.nn.functional.mse_loss(net(torch.randn(8, 144)), torch.randn(8, 20)).backward()
    optimizer.step()
    assert attached(net)["weight"].tree.at("/members.0/v") is tree.at("/members.0/v")
    program = torch.export.export(net, (torch.randn(8, 144),))
    x = torch.randn(8, 144)
    torch.testing.assert_close(program.module()(x), net(x))


def test_channels_share_nothing_and_every_channel_has_landmarks() -> None:
    w = torch.randn(10, 3 * 36, generator=torch.Generator().manual_seed(0))
    basis = members(one(Denil(stored=0.2, grid=(6, 6)), w))[0].v
    assert isinstance(basis, KernelBasis)
    assert (basis.grid, basis.sigma[0]) == ((3, 6, 6), 0.0)
    channel = basis.positions() // 36
    assert torch.bincount(channel).tolist() == [8, 7, 7] or sorted(torch.bincount(channel).tolist()) == [7, 7, 8]
    v = basis.to_dense().view(22, 3, 36)
    for i in range(3):
        assert not bool(v[channel != i, i].any())


def test_a_convolution_is_predicted_over_its_kernels_positions() -> None:
    w = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tree = one(Denil(stored=0.5), w)
    assert tree.dense_shape() == (12, 3, 4, 4)
    basis = members(tree)[0].v
    assert isinstance(basis, KernelBasis)
    assert (basis.grid, basis.rest, basis.landmarks) == ((3, 4, 4), (3, 4, 4), 24)


def test_the_covariance_kernel_predicts_what_the_inputs_say_and_stores_its_dictionary() -> None:
    torch.manual_seed(0)
    mixing, mean = torch.randn(6, 40), torch.randn(40)
    x = torch.randn(500, 6) @ mixing + mean
    w = torch.randn(30, 6) @ mixing
    method = Denil(stored=0.25, kernel="covariance", groups=2, ridge=1e-4)
    assert method.needs == {"count", "sum", "gram"}
    assert Denil(stored=0.25).needs == frozenset()
    evidence = {"count": torch.tensor([500.0]), "sum": x.sum(0), "gram": x.T @ x}
    planned = plan_method(method, source_of({"w": w}))
    step = planned.plan.steps[0]
    tree = method.apply([planned.sites["w"]], {"w": Dense(w)}, step.entry, {}, {"w": evidence})["w"]
    assert float((tree.to_dense() - w).norm() / w.norm()) < 0.01
    roles = {leaf.path.split("/")[2]: leaf.role for leaf in tree.leaves()}
    assert roles == {"u": Role.TRAINABLE, "v": Role.FIXED}
    assert tree.size_bits() == 32 * (30 * 10 + 2 * 10 * 40)
    covariance = torch.from_numpy(np.cov(x.numpy().T, bias=True)).double()
    covariance /= covariance.diagonal().mean()
    for member in members(tree):  # V solves (K_αα + λI) V = K_α,all for some landmarks: K_αα V ≈ K_α,all as λ → 0
        v = member.v.to_dense().double()
        row_space = v.T @ torch.linalg.lstsq(v.T, covariance, rcond=1e-6, driver="gelsd").solution
        torch.testing.assert_close(row_space, covariance, atol=0.02, rtol=0)
    with pytest.raises(DataError, match=r"w: found no statistics \['count', 'gram', 'sum'\]"):
        method.apply([planned.sites["w"]], {"w": Dense(w)}, step.entry, {}, {"w": {}})


def test_the_covariance_kernel_is_a_ridge_regression_between_the_layers_inputs() -> None:
    torch.manual_seed(1)
    x = torch.randn(400, 12) @ (torch.eye(12) + 0.1 * torch.randn(12, 12)) + 1
    net = torch.nn.Linear(12, 40)
    method = Denil(stored=0.5, kernel="covariance", groups=2)
    tree = run(net, [method], data=[(x, torch.zeros(400, dtype=torch.int64))]).trees["weight"]
    k, row = np.cov(x.numpy().T, bias=True), 0
    k /= np.diag(k).mean()
    for member in members(tree):
        v = member.v.to_dense().double().numpy()
        at = v.argmax(1)  # a landmark predicts itself best
        np.testing.assert_allclose(v, np.linalg.solve(k[np.ix_(at, at)] + 0.01 * np.eye(6), k[at]), atol=1e-3)
        rows = net.weight[row : row + 20].detach().double().numpy()
        # the layer's outputs over the inputs are what is fitted
        fit = np.linalg.lstsq((x.double().numpy() @ v.T), x.double().numpy() @ rows.T, rcond=None)[0].T
        np.testing.assert_allclose(member.to_dense().detach().numpy(), fit @ v, atol=1e-4)
        row += 20


def test_what_does_not_fit_or_pay_is_refused_with_the_sizes() -> None:
    weights = {"rows": torch.ones(9, 144), "inputs": torch.ones(20, 100), "w": torch.ones(20, 144)}
    skipped = planned_on(Denil(stored=0.25, grid=(12, 12)), weights).skipped
    assert "found 9 rows, expected at least 10" in skipped["rows"]
    assert "found 100 inputs, expected a multiple of 144" in skipped["inputs"]
    with pytest.raises(CompositionError, match="found 1 stored values for 16 channels"):
        planned_on(Denil(stored=0.01), {"w": torch.ones(20, 16, 3, 3)})
    with pytest.raises(
        CompositionError, match="would take 52560 numbers with its dictionary, the weight itself has 2880"
    ):
        planned_on(Denil(stored=0.25, kernel="covariance"), {"w": torch.ones(20, 144)})
    with pytest.raises(CompositionError, match="expected at most 2048"):
        planned_on(Denil(stored=0.9), {"w": torch.ones(10, 4096)})


def test_stored_values_are_pruned_and_shared_like_any_weight() -> None:
    torch.manual_seed(0)
    state = run(torch.nn.Linear(144, 20), [Denil(stored=0.25, grid=(12, 12)), Magnitude(sparsity=0.5), KMeans(bits=3)])
    assert str(state.plans[1]["steps"][0]["targets"]) == "['weight#/members.0/u']"
    assert isinstance(state.trees["weight"].at("/members.0/v"), KernelBasis)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_values_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    tree = one(Denil(stored=0.25, grid=(12, 12)), smooth(20).to(dtype))
    assert {leaf.tensor.dtype for leaf in tree.leaves()} == {dtype}
    assert float((tree.to_dense() - smooth(20)).norm() / smooth(20).norm()) < 0.2
