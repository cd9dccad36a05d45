import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg
from skimage import metrics as reference

from deformgan import fields
from deformgan.metrics import copying, distances, diversity, field_health, image_error, manifold
from deformgan.metrics.neighbours import close_pairs, nearest
from deformgan.metrics.subject import (
    Features,
    ImageSet,
    Subject,
    grouped,
    jackknife_interval,
    mean_interval,
    share_interval,
)

RNG = np.random.default_rng(0)


def image_set(images, blocks=None):
    blocks = np.arange(len(images)) if blocks is None else np.asarray(blocks)
    return ImageSet(np.asarray(images), 0.0, 255.0, blocks)


def closed_form(mean_a, cov_a, mean_b, cov_b):
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    return np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("count", [500, 12])  # more and fewer images than features
def test_frechet_equals_the_closed_form_of_the_samples_moments(count):
    a = RNG.normal(size=(count, 20)) @ RNG.normal(size=(20, 20))
    b = 1 + RNG.normal(size=(count + 5, 20)) @ RNG.normal(size=(20, 20))
    expected = closed_form(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_two_known_gaussians():
    """Standard deviations 1 and 2 in 4 dimensions, means 3 apart: 9 + 4 (2 - 1)^2 = 13."""
    a, b = RNG.normal(size=(2, 200_000, 4))
    assert distances.frechet(a, 2 * b + np.array([3, 0, 0, 0])) == pytest.approx(13, rel=0.01)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_extrapolated_distance_takes_the_bias_away():
    """Of equal distributions the plain distance is far from 0, the extrapolated one near it."""
    inside, plain, limits = 0, [], []
    for _ in range(20):
        a, b = RNG.normal(size=(2, 400, 30))
        subject = Subject(*(image_set(np.zeros((400, 1, 1, 1))) for _ in range(2)))
        found = distances._extrapolated(
            "", Features(a, b, None, None, ""), (subject.real.blocks, subject.fake.blocks), 0
        )
        plain.append(distances.frechet(a, b))
        limits.append(found.value)
        inside += found.interval[0] <= 0 <= found.interval[1]
    assert np.mean(plain) > 1.0 and abs(np.mean(limits)) < 0.1 * np.mean(plain)
    assert inside >= 16
    few = distances._extrapolated(
        "", Features(a[:50], b[:50], None, None, ""), (np.arange(50), np.arange(50)), 0
    )
    assert few.reason == "not available: 30 features need 60 images of each side to extrapolate"


def test_kid_of_equal_sets_is_within_two_standard_errors_of_0():
    values = []
    for _ in range(20):
        a, b = RNG.normal(size=(2, 150, 16))
        kid, error = distances.kernel_distance(a, b, np.arange(150), np.arange(150))
        values.append(kid / error)
    assert np.sum(np.abs(values) > 2) <= 3
    assert abs(np.mean(values)) < 0.7  # unbiased


def test_kid_equals_its_definition_and_grows_with_a_shift():
    a, b = RNG.normal(size=(2, 40, 8))

    def kernel(x, y):
        return (x @ y.T / 8 + 1) ** 3

    off = ~np.eye(40, dtype=bool)
    expected = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    own = np.arange(40), np.arange(40)
    assert distances.kernel_distance(a, b, *own)[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    shifted = [distances.kernel_distance(a, b + s, *own)[0] for s in (0.5, 1.0, 2.0)]
    assert shifted[0] < shifted[1] < shifted[2]


def test_kid_of_a_single_block_is_not_a_number():
    a, b = RNG.normal(size=(2, 20, 4))
    kid, _ = distances.kernel_distance(a, b, np.zeros(20), np.arange(20))
    assert np.isnan(kid)


def test_kid_is_not_fooled_by_near_copies_in_a_block():
    """Ten copies of each of 30 images: with the blocks known, it stays unbiased."""
    values = []
    for _ in range(30):
        a, b = np.repeat(RNG.normal(size=(30, 8)), 10, 0), RNG.normal(size=(300, 8))
        values.append(distances.kernel_distance(a, b, np.repeat(np.arange(30), 10), np.arange(300)))
    kids, errors = np.array(values).T
    assert abs(kids.mean()) < 3 * kids.std() / np.sqrt(30)
    assert 0.5 < errors.mean() / kids.std() < 2


def test_precision_and_recall_of_shifted_gaussians():
    """As in the papers: of equal sets density 1, coverage 1 - 2^-5 (Naeem et al. 2020, 3.4);
    all fall to 0 with the shift; one outlier lifts precision far more than density (fig. 4)."""
    real, fake = RNG.normal(size=(2, 800, 16))
    means = {s: [np.mean(m) for m in manifold.memberships(real, fake + s)] for s in (0, 1, 3)}
    assert min(means[0][:2]) > 0.7 and means[0][2] == pytest.approx(1, abs=0.1)
    assert means[0][3] == pytest.approx(1 - 0.5**5, abs=0.02)
    assert all(a > b for a, b in zip(means[0], means[1], strict=True))
    assert max(means[3]) < 0.01
    outlier = np.concatenate([real, np.full((1, 16), 3.0)])
    moved = fake + 3.0
    precision = np.mean(manifold.memberships(outlier, moved).precision)
    density = np.mean(manifold.memberships(outlier, moved).density)
    assert precision > 0.5 and density < 0.35


def test_recall_sees_a_missing_mode():
    modes = np.array([[0.0], [20.0]])
    real = RNG.normal(size=(400, 8)) + np.repeat(modes, 200, 0)
    fake = RNG.normal(size=(400, 8))
    found = manifold.memberships(real, fake)
    assert np.mean(found.precision) > 0.8
    assert np.mean(found.recall[:200]) > 0.8 and np.mean(found.recall[200:]) == 0
    assert 0.4 < np.mean(found.coverage) < 0.55


def test_neighbours_agree_with_brute_force():
    points, queries = RNG.normal(size=(700, 5)), RNG.normal(size=(600, 5))
    every = np.linalg.norm(queries[:, None] - points[None], axis=-1)
    distance, index = nearest(queries, points, 3)
    np.testing.assert_array_equal(index, np.argsort(every, 1)[:, :3])
    np.testing.assert_allclose(distance, np.sort(every, 1)[:, :3], rtol=1e-4)
    own = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert close_pairs(points, 0.7) == np.sum(np.triu(own < 0.7, 1))


def test_copies_are_recognised_and_fresh_samples_are_not():
    train, unseen, fresh = RNG.normal(size=(3, 300, 8))
    copies = train[RNG.integers(0, 300, 300)] + 0.05 * RNG.normal(size=(300, 8))
    to_train = [nearest(x, train, 1)[0][:, 0] for x in (unseen, fresh, copies)]
    assert copying.nearer(to_train[0], to_train[1]) == pytest.approx(0.5, abs=0.07)
    assert copying.median_ratio(to_train[0], to_train[1]) == pytest.approx(1, abs=0.1)
    assert copying.nearer(to_train[0], to_train[2]) > 0.99
    assert copying.median_ratio(to_train[0], to_train[2]) < 0.2


def test_a_generator_that_draws_anew_from_the_training_recordings_does_not_copy():
    """Held-out recordings lie elsewhere, so it is nearer to the training set than they are; but no
    nearer than training images are to each other."""
    centres = 3 * RNG.normal(size=(12, 6))
    images = np.repeat(centres, 25, 0) + RNG.normal(size=(300, 6))
    fresh = centres[RNG.integers(0, 6, 150)] + RNG.normal(size=(150, 6))
    train, unseen = images[:150], images[150:]
    to_train = [nearest(x, train, 1)[0][:, 0] for x in (unseen, fresh)]
    among = nearest(train, train, 2)[0][:, 1]
    assert copying.nearer(to_train[0], to_train[1]) > 0.8
    assert copying.nearer(to_train[0], among) == pytest.approx(
        copying.nearer(to_train[0], to_train[1]), abs=0.08
    )


def test_nearer_is_the_mann_whitney_statistic():
    unseen, made = RNG.integers(0, 9, 40), RNG.integers(0, 9, 30)
    pairs = np.sign(unseen[:, None] - made[None])
    assert copying.nearer(unseen, made) == pytest.approx(np.mean((pairs + 1) / 2))


def test_the_birthday_paradox_counts_the_images_of_a_generator():
    images = RNG.normal(size=(50, 6))
    drawn = images[RNG.integers(0, 50, 400)] + 1e-4 * RNG.normal(size=(400, 6))
    size, pairs = diversity.support(drawn, 0.01)
    assert size == pytest.approx(50, rel=0.1) and pairs > 1000
    assert diversity.support(RNG.normal(size=(50, 6)), 1e-3) == (float("inf"), 0)


def test_a_perfect_generator_is_not_called_collapsed_and_one_of_ten_images_is():
    """Few independent real images, in blocks of near copies, beside many generated ones."""
    few = []
    for _ in range(30):
        real = np.repeat(RNG.normal(size=(40, 6)), 10, 0) + 0.02 * RNG.normal(size=(400, 6))
        subject = Subject(
            image_set(np.zeros((400, 8, 8, 1)), np.repeat(np.arange(40), 10)),
            image_set(np.zeros((2000, 8, 8, 1))),
        )
        found = diversity._support(subject, real, RNG.normal(size=(2000, 6)))
        few.append(found.value < found.n[1] / 2)
        assert found.n == (40, 40)
    assert np.mean(few) <= 0.1
    ten = RNG.normal(size=(10, 6))[RNG.integers(0, 10, 2000)] + 1e-3 * RNG.normal(size=(2000, 6))
    assert diversity._support(subject, real, ten).value == pytest.approx(10, rel=0.5)


def test_image_errors_equal_scikit_image():
    truth = RNG.integers(0, 256, (5, 40, 32, 3), np.uint8)
    images = np.clip(truth + RNG.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    images[4] = truth[4]
    found = image_error.errors(image_set(images).batches(image_error.BATCH), image_set(truth))
    for i in range(4):
        a, b = truth[i] / 255, images[i] / 255
        assert found.mse[i] == pytest.approx(255**2 * np.mean((a - b) ** 2), rel=1e-4)
        psnr = reference.peak_signal_noise_ratio(a, b, data_range=1)
        assert found.psnr[i] == pytest.approx(psnr, abs=1e-4)
        _, every = reference.structural_similarity(
            a,
            b,
            channel_axis=-1,
            data_range=1,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )
        assert found.ssim[i] == pytest.approx(every[5:-5, 5:-5].mean(), abs=1e-4)
    assert found.mse[4] == 0 and np.isinf(found.psnr[4]) and found.ssim[4] == pytest.approx(1)


def test_paired_images_are_scored_beside_what_costs_nothing():
    truth = RNG.integers(0, 256, (12, 16, 16, 1), np.uint8)
    truth[:, :8] = 200
    close = np.clip(truth.astype(int) + 3, 0, 255).astype(np.uint8)
    close[0] = truth[0]
    subject = Subject(image_set(truth), image_set(close), paired=True)
    scores = dict(image_error.score(subject))
    assert scores["mse"].value < 9.01 and "1 identical apart" in scores["psnr"].about
    assert scores["psnr"].n == (11,)
    assert scores["mse_all_black"].value == pytest.approx(np.mean(truth.astype(float) ** 2))
    assert scores["mse_mean_colour"].value == pytest.approx(np.var(truth), rel=1e-3)
    assert scores["mse_nearest_training"].reason.startswith("not available")
    near = image_error.baselines(image_set(truth), image_set(truth[::-1]), np.arange(12)[::-1])
    found = image_error.errors(near["nearest_training"], image_set(truth))
    assert np.max(found.mse) == 0


def test_a_rotation_is_inverted_and_a_fold_is_not():
    rows, columns = np.indices((48, 48)) - 23.5
    angle = 0.2
    turn = np.array([[np.cos(angle) - 1, -np.sin(angle)], [np.sin(angle), np.cos(angle) - 1]])
    rotation = np.einsum("ij,jhw->hwi", turn, np.stack([rows, columns]))[None].astype(np.float32)
    back = np.asarray(fields.inverse(jnp.asarray(rotation)))[0]
    undo = np.einsum(
        "ij,jhw->hwi", np.linalg.inv(turn + np.eye(2)) - np.eye(2), np.stack([rows, columns])
    )
    np.testing.assert_allclose(back[12:36, 12:36], undo[12:36, 12:36], atol=1e-3)
    healthy = field_health.health(rotation)
    assert healthy["folded"][0] == 0 and healthy["inverse_error_max"][0] < 1e-3
    assert healthy["jacobian_min"][0] == pytest.approx(1, abs=1e-4)
    mirrored = np.zeros((1, 48, 48, 2), np.float32)
    mirrored[..., 0] = -2 * rows * (np.abs(rows) < 10)
    ill = field_health.health(mirrored)
    assert ill["folded"][0] > 0.2 and ill["jacobian_min"][0] < -0.9
    assert ill["inverse_error_max"][0] > 1


def test_smooth_random_fields_are_as_steep_as_asked_and_never_fold():
    for seed in range(5):
        field = fields.smooth_random(jax.random.key(seed), (64, 48), control=6, steepest=0.9)
        assert field.shape == (1, 64, 48, 2)
        assert float(fields.folded_fraction(field)[0]) == 0
        slopes = np.abs(np.diff(field, axis=1))[:, :, :-1] + np.abs(np.diff(field, axis=2))[:, :-1]
        assert slopes.max() == pytest.approx(0.9, rel=1e-4)


def test_intervals_know_of_blocks():
    """Ten copies of each of 20 values: the interval is that of 20 values, not of 200."""
    values = RNG.normal(size=20)
    low, high = mean_interval(np.repeat(values, 10), np.repeat(np.arange(20), 10))
    alone = mean_interval(values, np.arange(20))
    assert (low, high) == pytest.approx(alone)
    assert high - low == pytest.approx(2 * 2.093 * values.std(ddof=1) / np.sqrt(20), rel=1e-3)
    assert mean_interval(values, np.arange(20) // 10) is None


def test_the_interval_of_a_share_stays_a_share():
    assert share_interval(np.zeros(20), np.arange(20))[0] == 0
    assert 0.1 < share_interval(np.zeros(20), np.arange(20))[1] < 0.25
    low, high = share_interval(np.repeat([1.0, 1.0, 1.0, 0.0], 10), np.repeat(np.arange(4), 10))
    assert 0 < low < 0.75 < high < 1 and high - low > 0.5  # four blocks, not forty images


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x, y = RNG.normal(size=(2, 400))
    low, high = jackknife_interval(
        lambda a, b: x[a].mean() - y[b].mean(), (np.arange(400), np.arange(400))
    )
    assert (low + high) / 2 == pytest.approx(x.mean() - y.mean())
    assert (high - low) / 2 == pytest.approx(2.26 * np.sqrt(2 / 400), rel=0.6)
    sizes = np.bincount(grouped(np.repeat(np.arange(7), [9, 1, 1, 1, 9, 1, 1]), 3))
    assert sorted(sizes) == [5, 9, 9]


def test_scores_without_what_they_need_say_why():
    images = image_set(RNG.integers(0, 256, (8, 16, 16, 1), np.uint8))
    subject = Subject(images, images, missing={"inception": "no weights"})
    for family in (distances, manifold, copying, diversity, image_error, field_health):
        for name, score in family.score(subject):
            assert score.reason.startswith("not available: ") or np.isfinite(score.value), name
    few = Features(*RNG.normal(size=(2, 4, 3)), None, None, "random")
    subject = Subject(images, images, features={"random": few})
    assert "6 images of each side" in dict(manifold.score(subject))["precision_random"].reason


def test_replayed_fields_are_told_from_fresh_ones_of_the_same_distribution():
    rng = np.random.default_rng(0)
    image = ImageSet(np.zeros((4, 8, 8, 1)), 0.0, 1.0, np.arange(4))
    found, fresh = rng.normal(size=(2, 60, 4, 4, 2))
    for made, low, high in ((fresh, 0.9, 1.1), (found + 0.01 * fresh, 0.0, 0.05)):
        subject = Subject(image, image, velocity=made, train_velocity=found)
        scores = dict(copying.score(subject))
        own = scores["nearest_training_field"]
        assert low <= own.value <= high and own.interval[0] <= own.value <= own.interval[1]
