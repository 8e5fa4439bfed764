"""The loss by hand, and the Dice that is shown while a network is trained."""

import numpy as np
import pytest
from networks import float32_policy, gradients  # noqa: F401  the policy is a fixture

from unetseg.losses import Accuracy, ForegroundDice, PatchLoss, dice_cross_entropy


def random_prediction(shape, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.01, 1, (*shape, num_classes))
    p /= p.sum(axis=-1, keepdims=True)
    return rng.integers(0, num_classes, (*shape, 1)).astype(np.uint8), p.astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_loss_is_soft_dice_plus_cross_entropy_voxel_by_voxel(shape, num_classes):
    y, p = random_prediction(shape, num_classes)
    truth, flat = y.ravel(), p.reshape(-1, num_classes).astype(float)
    entropy = -sum(np.log(flat[i, k]) for i, k in enumerate(truth)) / len(truth)
    dice = [
        (2 * flat[truth == k, k].sum() + 1) / ((truth == k).sum() + flat[:, k].sum() + 1)
        for k in range(1, num_classes)
    ]
    expected = 1 - sum(dice) / len(dice) + entropy
    assert float(dice_cross_entropy(y, p)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_perfect_prediction_is_0_even_if_a_class_is_absent():
    y = np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    assert float(dice_cross_entropy(y, np.eye(3, dtype=np.float32)[y[..., 0]])) == 0


def test_the_loss_with_an_absent_class_is_the_one_worked_out_by_hand():
    y = np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    p = np.eye(3, dtype=np.float32)[y[..., 0]]
    p[0, 1, 1] = (0.5, 0, 0.5)
    # Dice of class 1 is 1; class 2 is not there and has none.
    # Cross-entropy: one voxel of four has probability 1/2.
    assert float(dice_cross_entropy(y, p)) == pytest.approx(np.log(2) / 4, abs=1e-6)


def test_a_batch_of_background_is_judged_by_cross_entropy_alone():
    y = np.zeros((1, 2, 2, 1), np.uint8)
    p = np.full((1, 2, 2, 3), (0.5, 0.25, 0.25), np.float32)
    assert float(dice_cross_entropy(y, p)) == pytest.approx(np.log(2), abs=1e-6)


def test_what_a_batch_lacks_is_not_unlearnt_by_dice():
    """The loss has no slope for it: the softmax lowers it as the classes that are there rise."""
    y = np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    [gradient] = gradients(lambda p: dice_cross_entropy(y, p), random_prediction((1, 2, 2), 3)[1])
    np.testing.assert_array_equal(gradient[..., 2], 0)


@pytest.mark.parametrize("certain", ["right", "wrong", "random"])
def test_the_gradient_of_the_loss_is_finite(certain):
    y, p = random_prediction((1, 3, 4, 5), 3)
    if certain != "random":
        p = np.eye(3, dtype=np.float32)[(y[..., 0] + (certain == "wrong")) % 3]
    assert np.isfinite(dice_cross_entropy(y, p))
    [gradient] = gradients(lambda p: dice_cross_entropy(y, p), p)
    assert np.isfinite(gradient).all()


def test_a_better_prediction_has_a_lower_loss():
    y, p = random_prediction((1, 4, 4, 4), 3)
    truth = np.eye(3, dtype=np.float32)[y[..., 0]]
    losses = [float(dice_cross_entropy(y, (1 - s) * p + s * truth)) for s in (0, 0.5, 1)]
    assert losses[0] > losses[1] > losses[2] == pytest.approx(0, abs=1e-5)


def test_foreground_dice_pools_the_voxels_of_all_batches():
    metric = ForegroundDice(3)
    overlap, total = np.zeros(3), np.zeros(3)
    for seed in range(3):
        y, p = random_prediction((2, 4, 5), 3, seed)
        metric.update_state(y, p)
        found, truth = p.argmax(axis=-1).ravel(), y.ravel()
        for k in (1, 2):
            a, b = set(np.flatnonzero(truth == k)), set(np.flatnonzero(found == k))
            overlap[k] += len(a & b)
            total[k] += len(a) + len(b)
    expected = np.mean(2 * overlap[1:] / total[1:])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_foreground_dice_leaves_out_a_class_that_does_not_occur():
    metric = ForegroundDice(4)
    y = np.array([0, 1, 1, 1], np.uint8).reshape(1, 4, 1, 1)
    found = np.array([0, 0, 1, 1])
    metric.update_state(y, np.eye(4, dtype=np.float32)[found].reshape(1, 4, 1, 4))
    assert float(metric.result()) == pytest.approx(2 * 2 / (3 + 2))  # of class 1 alone


def test_foreground_dice_counts_a_class_that_is_predicted_but_absent():
    metric = ForegroundDice(3)
    y = np.array([1, 1, 0], np.uint8).reshape(1, 3, 1, 1)
    metric.update_state(y, np.eye(3, dtype=np.float32)[[1, 1, 2]].reshape(1, 3, 1, 3))
    assert float(metric.result()) == pytest.approx((1 + 0) / 2)


def test_foreground_dice_starts_again_after_a_reset():
    metric = ForegroundDice(2)
    y = np.ones((1, 2, 2, 1), np.uint8)
    metric.update_state(y, np.eye(2, dtype=np.float32)[y[..., 0]])
    assert float(metric.result()) == 1
    metric.reset_state()
    assert float(metric.result()) == 0


def partly_drawn(num_classes=3):
    y, p = random_prediction((1, 4, 4, 4), num_classes)
    y[:, :, :2] = 255
    return y, p


def test_voxels_that_nobody_drew_do_not_count():
    y, p = partly_drawn()
    cropped = float(dice_cross_entropy(y[:, :, 2:], p[:, :, 2:]))
    assert float(dice_cross_entropy(y, p)) == pytest.approx(cropped, rel=1e-6)
    [gradient] = gradients(lambda p: dice_cross_entropy(y, p), p)
    np.testing.assert_array_equal(gradient[:, :, :2], 0)
    assert (np.abs(gradient[:, :, 2:]).max(axis=-1) > 0).all()


def test_a_batch_of_which_nobody_drew_anything_has_no_loss_and_no_slope():
    y, p = partly_drawn()
    y[:] = 255
    assert float(dice_cross_entropy(y, p)) == 0
    [gradient] = gradients(lambda p: dice_cross_entropy(y, p), p)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("metric", [ForegroundDice(3), Accuracy()])
def test_the_monitors_pass_over_what_nobody_drew(metric):
    y, p = partly_drawn()
    metric.update_state(y, p)
    whole = float(metric.result())
    metric.reset_state()
    metric.update_state(y[:, :, 2:], p[:, :, 2:])
    assert float(metric.result()) == pytest.approx(whole)
    if isinstance(metric, Accuracy):
        right = p[:, :, 2:].argmax(axis=-1) == y[:, :, 2:, :, 0]
        assert whole == pytest.approx(right.mean())


def test_dice_of_regions_is_that_of_their_labels_together():
    y, p = random_prediction((1, 4, 4, 4), 4)
    members = np.array([[0, 0], [1, 0], [1, 1], [1, 1]], np.float32)  # whole: 1, 2, 3; core: 2, 3
    truth, flat = y.ravel(), p.reshape(-1, 4).astype(float)
    entropy = -np.mean([np.log(flat[i, k]) for i, k in enumerate(truth)])
    dice = []
    for values in ((1, 2, 3), (2, 3)):
        inside, found = np.isin(truth, values), flat[:, values].sum(axis=1)
        dice.append((2 * found[inside].sum() + 1) / (inside.sum() + found.sum() + 1))
    expected = 1 - np.mean(dice) + entropy
    assert float(dice_cross_entropy(y, p, members)) == pytest.approx(expected, rel=1e-5)


def test_classes_weigh_in_the_cross_entropy():
    y, p = random_prediction((1, 4, 4, 4), 3)
    truth, flat, weights = y.ravel(), p.reshape(-1, 3).astype(float), np.array([0.5, 1, 4])
    entropy = -np.average(np.log(flat[np.arange(truth.size), truth]), weights=weights[truth])
    plain = -np.mean(np.log(flat[np.arange(truth.size), truth]))
    difference = float(dice_cross_entropy(y, p, class_weights=weights.astype(np.float32)))
    difference -= float(dice_cross_entropy(y, p))
    assert difference == pytest.approx(entropy - plain, rel=1e-4)


def test_the_loss_of_a_patch_is_one_number_in_one_dimension():
    y, p = random_prediction((2, 4, 4), 3)
    assert np.asarray(PatchLoss()(y, p)).shape == (1,)
    assert float(PatchLoss(lambda y, p: 7.0 * p[0, 0, 0, 0])(y, p)[0]) == pytest.approx(
        7 * p[0, 0, 0, 0]
    )
