"""Muon: steps that are about orthogonal."""

import keras
import numpy as np
import pytest
from keras import ops
from networks import float32_policy, noise  # noqa: F401  the policy is a fixture

from unetseg import optimizers
from unetseg.optimizers import Muon, orthogonalise
from unetseg.run import devices


@pytest.fixture
def computing_on(monkeypatch):
    """Return a function that pretends to compute on a kind of device."""
    return lambda kind: monkeypatch.setattr(devices, "list_devices", lambda: [kind])


@pytest.mark.parametrize("shape", [(8, 8), (8, 50), (32, 300)])
@pytest.mark.parametrize("kind", ["cpu", "gpu", "tpu"])
def test_a_matrix_becomes_about_orthogonal_along_its_own_singular_vectors(
    computing_on, kind, shape
):
    computing_on(kind)
    matrix = noise(*shape)
    left, _, right = np.linalg.svd(matrix.astype(float), full_matrices=False)
    product = np.array(orthogonalise(ops.convert_to_tensor(matrix)))
    inner = left.T @ product @ right.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=0.01)
    # Jordan et al. 2024: singular values end up between about 0.7 and 1.2
    assert np.diag(inner)[:-1].min() > 0.6
    assert np.diag(inner).max() < 1.3


def test_the_scale_of_a_matrix_makes_no_difference():
    matrix = noise(8, 30)
    products = [
        np.array(orthogonalise(ops.convert_to_tensor(scale * matrix)))
        for scale in (np.float32(1e-3), np.float32(1e3))
    ]
    np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-4)


def test_processor_and_gpu_make_the_same_of_a_matrix(computing_on):
    matrix, made = ops.convert_to_tensor(noise(16, 100)), []
    for kind in ("cpu", "gpu"):
        computing_on(kind)
        made.append(np.array(orthogonalise(matrix)))
    np.testing.assert_allclose(*made, atol=1e-4)


@pytest.mark.parametrize(("kind", "bits"), [("gpu", 10), ("tpu", 7)])
def test_the_few_bits_with_which_gpus_and_tpus_multiply_let_nothing_grow(
    computing_on, monkeypatch, kind, bits
):
    matmul, kept = ops.matmul, np.int32(-1 << (23 - bits))

    def multiply(*matrices):
        cut = ((np.array(one).view(np.int32) & kept).view(np.float32) for one in matrices)
        return matmul(*map(ops.convert_to_tensor, cut))

    monkeypatch.setattr(optimizers.ops, "matmul", multiply)
    left, _, right = np.linalg.svd(noise(64, 400), full_matrices=False)
    matrix = (left * np.geomspace(1, 1e-6, 64)) @ right  # as of a kernel after some epochs
    tensor = ops.convert_to_tensor(matrix.astype(np.float32))
    largest = {}
    for one in ("cpu", kind):
        computing_on(one)
        largest[one] = np.linalg.svd(np.array(orthogonalise(tensor)), compute_uv=False)[0]
    assert largest[kind] < 1.3
    assert largest["cpu"] > 1.5 * largest[kind]  # so that there is something to keep from growing


def one_step(optimizer, shape, gradient):
    variable = keras.Variable(np.zeros(shape, np.float32))
    optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    return np.array(variable.numpy())


@pytest.mark.parametrize("shape", [(3, 3, 3, 8, 16), (3, 3, 8, 16), (1, 1, 1, 40, 8)])
def test_muon_moves_a_kernel_against_the_gradient_by_a_fifth_of_the_rate(shape):
    gradient = noise(*shape)
    for scale in (1, 1000):
        step = one_step(Muon(0.01, weight_decay=0), shape, scale * gradient)
        # an orthogonal (n, m) matrix has a root mean square of 1 / root(max(n, m))
        rms = np.sqrt(np.mean(step**2))
        assert 0.7 * 0.002 < rms < 1.2 * 0.002
        assert np.sum(step * gradient) < 0
    flat = step.reshape(-1, shape[-1])
    values = np.linalg.svd(flat, compute_uv=False)
    assert values.min() > 0.4 * values.max()


def test_muon_keeps_a_momentum():
    variable = keras.Variable(np.zeros((3, 3, 8, 8), np.float32))
    optimizer, gradient = Muon(0.01, weight_decay=0), noise(3, 3, 8, 8)
    optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    before = np.array(variable.numpy())
    optimizer.apply([ops.convert_to_tensor(0 * gradient)], [variable])
    assert np.sum((variable.numpy() - before) * gradient) < 0


@pytest.mark.parametrize("shape", [(16,), (3, 3, 3, 1, 4), (1, 1, 1, 16, 3), (20, 30)])
def test_muon_leaves_scales_and_narrow_kernels_to_adamw(shape):
    gradient = noise(*shape)
    steps = [one_step(kind(0.01), shape, gradient) for kind in (Muon, keras.optimizers.AdamW)]
    np.testing.assert_array_equal(*steps)
