import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy import signal

from deformgan import losses
from deformgan.checkpoint import Checkpoints
from deformgan.errors import UserError
from deformgan.models import equalised, resample, stylegan2, styles
from deformgan.models.layers import AXIS
from deformgan.state import Pair, TrainState

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 4)
INIT = jax.random.key(0, impl="rbg")  # its draws compile faster
TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8
WIDTHS = (6, 4)  # 8x8
GENERATOR = stylegan2.Generator(WIDTHS, 3, latent=16, mapping_layers=2)
DISCRIMINATOR = stylegan2.Discriminator(WIDTHS)
SMALLEST = stylegan2.Generator((4,), 2, latent=6, mapping_layers=2)  # 4x4
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda: GENERATOR.init(INIT, KEYS, train=False))()


@pytest.fixture(scope="module")
def smallest():
    return with_noise(jax.jit(lambda: SMALLEST.init(INIT, KEYS, train=False))())


@pytest.fixture(scope="module")
def disc_variables():
    return jax.jit(lambda: DISCRIMINATOR.init(INIT, IMAGES, train=False))()


def with_noise(variables, strength=1.0):
    """The variables with every noise strength set, which is 0 at first."""

    def place(path, leaf):
        return jnp.full_like(leaf, strength) if "noise_strength" in str(path) else leaf

    return jax.tree.map_with_path(place, variables)


# Resampling


def filtered(x, *, taps=TAPS, up=1, down=1):
    """scipy.signal.upfirdn on both axes, with the border that it adds."""
    for axis in (1, 2):
        x = signal.upfirdn(taps, x, up, down, axis=axis)
    return x


def test_resampling_is_that_of_scipy():
    x = normal(2, 6, 8, 3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    full = filtered(x)  # as if padded by 3
    for padding in (0, 1, 2, 3):
        cut = slice(3 - padding, -(3 - padding) or None)
        close(jax.jit(resample.blur, static_argnums=1)(x, padding), full[:, cut, cut])
    close(jax.jit(resample.upsample)(x), filtered(x, taps=2 * TAPS, up=2)[:, 1:13, 1:17])
    close(jax.jit(resample.downsample)(x), filtered(x, down=2)[:, 1:4, 1:5])


def test_strided_and_transposed_convolutions_are_those_of_scipy():
    x, kernel = normal(1, 6, 8, 2), normal(3, 3, 2, 3, seed=1)
    down, up = np.zeros((3, 4, 3)), np.zeros((13, 17, 3))
    blurred, zeros = filtered(x)[0, 1:-1, 1:-1], np.zeros((11, 15, 2))
    zeros[::2, ::2] = x[0]
    for i in range(2):
        for o in range(3):
            taps = kernel[..., i, o]
            down[..., o] += signal.correlate2d(blurred[..., i], taps, "valid")[::2, ::2]
            up[..., o] += signal.convolve2d(zeros[..., i], taps)
    up = 4 * filtered(up[None])[:, 2:-2, 2:-2]
    np.testing.assert_allclose(
        jax.jit(resample.conv_down)(x, kernel)[0], down, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(jax.jit(resample.conv_up)(x, kernel), up, rtol=1e-4, atol=1e-4)


def test_upsampling_keeps_a_constant_and_its_adjoint_is_downsampling():
    up, down = jax.jit(resample.upsample), jax.jit(resample.downsample)
    flat = np.asarray(up(np.ones((2, 4, 4, 3), np.float32)))
    np.testing.assert_allclose(flat[:, 1:-1, 1:-1], 1.0, rtol=1e-6)
    x, y = normal(2, 8, 8, 3), normal(2, 4, 4, 3, seed=1)
    np.testing.assert_allclose(np.vdot(down(x), y), np.vdot(x, up(y)) / 4, rtol=1e-4)


def bare_conv_down(x, kernel):
    return resample._strided(resample.blur.__wrapped__(x, 2), kernel)


def bare_conv_up(x, kernel):
    out = resample._scatter.__wrapped__(x, kernel.swapaxes(2, 3))
    return 4 * resample.blur.__wrapped__(out, 1)


def test_first_and_second_derivatives_are_those_of_autodiff():
    """Against the same functions without the adjoints that were written out."""
    x, kernel = normal(1, 4, 6, 2), normal(3, 3, 2, 2, seed=1)
    bare = (resample.upsample.__wrapped__, resample.downsample.__wrapped__)

    def slopes(function, *args):
        every = tuple(range(len(args)))
        first = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), every)
        return first(*args), jax.grad(
            lambda *a: sum(jnp.sum(jnp.cos(s)) for s in first(*a)), every
        )(*args)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(functions, x, kernel):
        up, down, conv_up, conv_down = functions
        alone, with_kernel = (slopes(f, x) for f in (up, down)), (conv_up, conv_down)
        return list(alone), [slopes(f, x, kernel) for f in with_kernel]

    own = (resample.upsample, resample.downsample, resample.conv_up, resample.conv_down)
    got = derivatives(own, x, kernel)
    wanted = derivatives((*bare, bare_conv_up, bare_conv_down), x, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


# Layers


@pytest.mark.parametrize("up", [False, True])
def test_modulation_equals_weights_of_each_example(up):
    layer = equalised.ModulatedConv(4, up=up)
    x, w = normal(3, 6, 6, 5), normal(3, 7, seed=1)
    params = jax.jit(layer.init)(INIT, x, w)
    style = equalised.Dense(5).apply({"params": params["params"]["style"]}, w)
    kernel = params["params"]["kernel"] / 45**0.5  # equalised

    def one(x, style):  # Karras et al. 2020, eqs. 1 and 3
        own = kernel * style[None, None, :, None]
        own *= jax.lax.rsqrt(jnp.sum(own**2, axis=(0, 1, 2), keepdims=True) + 1e-8)
        return (resample.conv_up if up else equalised._conv)(x[None], own)[0]

    wanted = jax.jit(lambda: jnp.stack([one(*pair) for pair in zip(x, style, strict=True)]))()
    got = jax.jit(layer.apply)(params, x, w)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_demodulated_outputs_have_unit_variance_for_every_style():
    layer = equalised.ModulatedConv(32)
    x, w = normal(3, 34, 34, 16), normal(3, 7, seed=1) * np.float32([[0.1], [1.0], [30.0]])
    params = jax.jit(layer.init)(INIT, x, w)
    out = jax.jit(layer.apply)(params, x, w)[:, 1:-1, 1:-1]  # without the border of zeros
    np.testing.assert_allclose(np.std(out, axis=(1, 2, 3)), 1.0, atol=0.03)
    raw = jax.jit(layer.copy(demodulate=False).apply)(params, x, w)
    assert np.std(raw[2]) > 5 * np.std(raw[0])


def test_the_multiplier_slows_learning_and_changes_nothing_else():
    x = normal(64, 50)
    slow, fast = equalised.Dense(40, rate=0.01, bias=1.0), equalised.Dense(40, bias=1.0)
    start = slow.init(INIT, x)
    same = jax.tree.map(lambda p: 0.01 * p, start)
    np.testing.assert_allclose(slow.apply(start, x), fast.apply(same, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.std(slow.apply(start, x) - 1), 1.0, atol=0.1)

    def moved(layer, params):
        step = jax.tree.map(lambda p: p + 1e-3, params)  # what Adam moves each weight by
        return jnp.mean(jnp.abs(layer.apply(step, x) - layer.apply(params, x)))

    np.testing.assert_allclose(moved(slow, start) / moved(fast, same), 0.01, rtol=0.02)


# Networks


def test_parameters_are_as_many_as_the_authors_code_prints():
    widths = stylegan2.widths_for(1024)
    assert widths == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    generator = stylegan2.Generator(widths, 3, mapping_layers=2)
    discriminator, images = stylegan2.Discriminator(widths), jnp.zeros((1, 1024, 1024, 3))
    shapes = [
        jax.eval_shape(lambda: generator.init(KEY, KEYS[:1], train=False)),
        jax.eval_shape(lambda: discriminator.init(KEY, images, train=False)),
    ]
    counts = [sum(x.size for x in jax.tree.leaves(s["params"])) for s in shapes]
    assert counts == [28_794_124, 29_012_513]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", stylegan2.SIZES)
def test_every_size_and_channel_count_fits_both_networks(size, channels):
    widths = stylegan2.widths_for(size, base=2 * size, most=4)
    generator = stylegan2.Generator(widths, channels, latent=8, mapping_layers=2)
    images, _ = jax.eval_shape(lambda: generator.init_with_output(KEY, KEYS, train=False))
    assert images.shape == (4, size, size, channels)
    discriminator = stylegan2.Discriminator(widths)
    out, _ = jax.eval_shape(
        lambda: discriminator.init_with_output(KEY, jnp.zeros(images.shape), train=False)
    )
    assert out.shape == (4,)


def test_bfloat16_computes_what_float32_does(variables, disc_variables):
    """Images, parameters and gradients stay float32, and outputs differ by rounding alone."""

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(dtype):
        generator, discriminator = GENERATOR.copy(dtype=dtype), DISCRIMINATOR.copy(dtype=dtype)

        def loss(params):
            both = variables | {"params": params}
            images = generator.apply(both, KEYS, train=False)
            out = discriminator.apply(disc_variables, images, train=False)
            return jnp.sum(out), images

        gradient, images = jax.grad(loss, has_aux=True)(variables["params"])
        return images, jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])

    def error(got, wanted):
        assert got.dtype == wanted.dtype == jnp.float32
        return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)

    (images, gradient), (exact_images, exact_gradient) = map(outputs, (jnp.bfloat16, jnp.float32))
    assert 0 < error(images, exact_images) < 0.02
    assert error(gradient, exact_gradient) < 0.25  # some rectifiers are on the other side


def test_noise_varies_the_image_and_belongs_to_its_key(variables):
    w = np.repeat(normal(1, 4, 16), 4, axis=0)

    @jax.jit
    def synthesise(variables, keys):
        return GENERATOR.apply(variables, w, keys, method="synthesise")

    noisy = with_noise(variables, 0.5)
    images = synthesise(noisy, KEYS)
    assert np.std(images, axis=0).min() > 0
    np.testing.assert_allclose(synthesise(noisy, KEYS[::-1]), images[::-1], rtol=1e-4, atol=1e-5)
    z = styles.latents(KEYS, 16)
    np.testing.assert_array_equal(styles.latents(KEYS[2:], 16), z[2:])
    still = synthesise(variables, KEYS)  # its strength is 0 at first
    np.testing.assert_allclose(still, np.broadcast_to(still[:1], still.shape), atol=1e-6)
    planes = styles.noise(KEYS, 3)
    assert [p.shape for p in planes] == [(4, side, side, 1) for side in (4, 8, 8, 16, 16)]
    values = np.concatenate([p.ravel() for p in planes])
    assert len(np.unique(values)) > 0.99 * len(values)
    np.testing.assert_allclose(np.std(values), 1.0, atol=0.05)


def test_the_discriminator_sees_that_a_batch_is_all_alike(disc_variables):
    def judge(images, bounded=False):
        network = DISCRIMINATOR.copy(bounded=bounded)
        return jax.jit(lambda x: network.apply(disc_variables, x, train=True))(images)

    together = judge(IMAGES)
    assert abs(together[0] - judge(np.repeat(IMAGES[:1], 4, axis=0))[0]) > 1e-3
    np.testing.assert_allclose(judge(IMAGES, bounded=True), np.tanh(together), rtol=1e-4)


# Styles


def test_mixing_takes_the_tail_from_the_other_style_one_example_in_ten_excepted():
    count, layers = 4000, 5
    keys = jax.random.split(KEY, count)
    own, other = np.zeros((2, count, layers, 2), np.float32) + np.float32([[[[0]]], [[[1]]]])
    mix = jax.jit(functools.partial(styles.mix, probability=0.9))
    mixed = np.asarray(mix(own, other, keys))
    assert (np.diff(mixed, axis=1) >= 0).all() and (mixed[:, 0] == 0).all()
    taken = np.bincount(mixed[..., 0].sum(axis=1).astype(int), minlength=layers)
    np.testing.assert_allclose(taken / count, [0.1, *[0.9 / 4] * 4], atol=0.03)
    unmixed = styles.mix(own[:9], other[:9], keys[:9], probability=0.0)
    np.testing.assert_array_equal(unmixed, own[:9])


def test_truncation_pulls_to_the_tracked_mean(variables):
    w, mean = normal(3, 4, 16), normal(16, seed=1)
    np.testing.assert_allclose(styles.truncate(w, mean, 1.0), w, rtol=1e-5, atol=1e-6)
    half = styles.truncate(w, mean, 0.5)
    np.testing.assert_allclose(half, (w + mean[None, None]) / 2, rtol=1e-5, atol=1e-6)

    @jax.jit
    def sample(truncation):
        w = GENERATOR.apply(variables, styles.latents(KEYS, 16), method="map")
        near = styles.truncate(w, variables["batch_stats"]["mean_w"], truncation)
        return GENERATOR.apply(variables, near, KEYS, method="synthesise")

    np.testing.assert_allclose(np.std(sample(0.0), axis=0), 0.0, atol=1e-6)
    whole = jax.jit(lambda: GENERATOR.apply(variables, KEYS, train=False))()
    np.testing.assert_allclose(sample(1.0), whole, rtol=1e-4, atol=1e-5)
    assert np.std(sample(1.0), axis=0).max() > 0.01


# Training


def test_running_means_are_those_of_the_global_batch(smallest):
    """Two devices with half the batch each count what one with all of it counts."""

    def regularise(keys):
        return stylegan2.path_length(SMALLEST, smallest, keys)

    one, two = (jax.pmap(regularise, axis_name=AXIS)(KEYS.reshape(count, -1)) for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one[1:]), jax.tree.leaves(two[1:]), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(b[0], b[1])
    np.testing.assert_allclose(one.penalty[0], np.mean(two.penalty), rtol=1e-3)

    half = KEYS[::2]
    mapping = stylegan2.Mapping(2)
    w = mapping.apply({"params": smallest["params"]["mapping"]}, styles.latents(half, 6))
    np.testing.assert_allclose(one.stats["mean_w"][0], 0.005 * np.mean(w, axis=0), rtol=1e-3)
    np.testing.assert_allclose(one.stats["path_length"], 0.01 * one.length, rtol=1e-4)


def test_path_lengths_of_an_orthogonal_map():
    """‖Jᵀy‖² of `images = a Q w` is a² times that of y: chi-squared over the number of pixels."""
    turn, _ = np.linalg.qr(normal(32, 32))
    scales = np.repeat(np.float32([1.0, 3.0]), 500)
    w = normal(1000, 2, 16)

    def synthesise(w):
        flat = jnp.einsum("pq,bq->bp", turn, w.reshape(-1, 32)) * scales[:, None]
        return flat.reshape(-1, 4, 4, 2)

    measure = jax.jit(functools.partial(losses.path_lengths, synthesise))
    lengths = measure(w, jax.random.split(KEY, 1000))
    # Both layers together get all of y; the mean over layers halves the power.
    power = np.mean(np.square(lengths).reshape(2, 500), axis=1)
    np.testing.assert_allclose(power, np.array([1.0, 9.0]) * 32 / 16 / 2, rtol=0.05)


def test_the_path_penalty_pulls_lengths_to_their_running_mean():
    lengths, mean = jnp.array([1.0, 3.0]), jnp.array(2.5)
    np.testing.assert_allclose(losses.path_length_penalty(lengths, mean), [2.25, 0.25])
    flow = jax.grad(lambda m: jnp.sum(losses.path_length_penalty(lengths, m)))(mean)
    assert flow == 0
    w = normal(1, 2, 3)

    def length(scale):
        return losses.path_lengths(lambda w: scale * w[..., None], w, KEYS[:1])[0]

    assert np.isfinite(jax.jit(jax.grad(length))(0.0))


def test_descending_the_path_penalty_evens_the_lengths(smallest):
    stats = smallest["batch_stats"] | {"path_length": jnp.array(0.3)}

    def penalty(params, keys):
        both = {"params": params, "batch_stats": stats}
        return stylegan2.path_length(SMALLEST, both, keys, shrink=1, decay=0.0).penalty

    step = jax.pmap(jax.value_and_grad(penalty), axis_name=AXIS, in_axes=(None, 0))
    params, values = smallest["params"], []
    for _ in range(5):
        value, gradient = jax.tree.map(lambda x: x[0], step(params, KEYS[None]))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
        values.append(float(value))
    assert all(after < before for before, after in itertools.pairwise(values)), values


def test_running_means_survive_a_checkpoint(variables, tmp_path):
    stats = {"mean_w": normal(16), "path_length": jnp.array(0.75)}
    gen = variables | {"batch_stats": stats}
    state = TrainState(
        step=jnp.array(3),
        key=jax.random.key_data(KEY),
        variables=Pair(gen=gen, disc={"params": jnp.zeros(1), "batch_stats": {}}),
        ema=gen,
        opt=Pair(gen=jnp.zeros(1), disc=jnp.zeros(1)),
    )
    checkpoints = Checkpoints(epath.Path(tmp_path), best="none")
    checkpoints.save(state, {"size": jnp.zeros(1)}, {}, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(state)
    sampler = checkpoints.sampler("newest")
    checkpoints.close()
    for back in (restored.variables.gen, sampler.variables):
        jax.tree.map(np.testing.assert_array_equal, back["batch_stats"], stats)


def test_settings_out_of_range_are_named():
    stylegan2.check(64, 4, 1024, 64)
    with pytest.raises(UserError, match=r"data\.size, data\.channels: 96, 3; .*32, 64, 128, 256"):
        stylegan2.check(96, 3, 1024, 64)
    with pytest.raises(UserError, match=r"model\.channel_base, .*: 32, 64; give 64 or more"):
        stylegan2.check(64, 3, 32, 64)
