import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deformgan.errors import UserError
from deformgan.models import dcgan, layers

KEY = jax.random.key(0)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
ALL_FORMS = {
    "strided": [layers.strided_conv, layers._strided_by_patches, layers._strided_plain],
    "transposed": [
        layers.transposed_conv,
        layers._transposed_by_phases,
        layers._transposed_by_overlap,
        layers._transposed_plain,
    ],
}


def value_and_gradients(function, x, kernel):
    def loss(x, kernel):
        return jnp.sum(jnp.sin(function(x, kernel)))

    return function(x, kernel), jax.grad(loss, argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("inputs", [1, 3, 40])
@pytest.mark.parametrize("form", ALL_FORMS["strided"])
def test_strided_forms_agree_with_lax(form, inputs):
    x = jax.random.normal(KEY, (2, 8, 12, inputs))
    kernel = jax.random.normal(KEY, (4, 4, inputs, 5))

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=DIMENSIONS
        )

    for got, wanted in zip(
        jax.tree.leaves(value_and_gradients(form, x, kernel)),
        jax.tree.leaves(value_and_gradients(reference, x, kernel)),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("inputs", [1, 3, 70])
@pytest.mark.parametrize("form", ALL_FORMS["transposed"])
def test_transposed_forms_are_the_adjoint_of_the_strided_convolution(form, inputs):
    x = jax.random.normal(KEY, (2, 4, 6, inputs))
    kernel = jax.random.normal(KEY, (inputs, 4, 4, 5))

    def reference(x, kernel):
        def forward(y):
            return lax.conv_general_dilated(
                y,
                kernel.transpose(1, 2, 3, 0),
                (2, 2),
                ((1, 1), (1, 1)),
                dimension_numbers=DIMENSIONS,
            )

        return jax.linear_transpose(forward, jnp.zeros((2, 8, 12, 5)))(x)[0]

    for got, wanted in zip(
        jax.tree.leaves(value_and_gradients(form, x, kernel)),
        jax.tree.leaves(value_and_gradients(reference, x, kernel)),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


def test_a_resize_convolution_is_nearest_neighbours_and_a_3x3_convolution():
    x = jax.random.normal(KEY, (2, 5, 6, 3))
    layer = layers.ResizeConv(4)
    variables = layer.init(jax.random.key(1), x)
    twice = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    wanted = lax.conv_general_dilated(
        jnp.pad(twice, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"),
        variables["params"]["kernel"].transpose(1, 2, 0, 3)[::-1, ::-1],
        (1, 1),
        "VALID",
        dimension_numbers=DIMENSIONS,
    )
    np.testing.assert_allclose(layer.apply(variables, x), wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "even"), [("resize", True), ("transposed", False)])
def test_only_a_resize_convolution_keeps_even_features_even(kind, even):
    layer = layers.upsampling(kind, 4)
    out, _ = layer.init_with_output(KEY, jnp.ones((1, 6, 6, 3)))
    seen = out[0] if even else out[0, 2:-2, 2:-2]
    assert bool(jnp.all(jnp.ptp(seen, axis=(0, 1)) < 1e-6)) == even


def convolution_weights(params):
    kernels = [p for path, p in jax.tree.leaves_with_path(params) if "kernel" in str(path)]
    return sum(k.size for k in kernels)


def test_the_reports_networks_have_the_reports_sizes():
    generator = dcgan.Generator(widths=(64, 32, 16, 8, 4), channels=2)
    variables = generator.init(KEY, jnp.zeros((1, 100)), train=False)
    assert convolution_weights(variables["params"]) == 146_048
    field = generator.apply(variables, jnp.ones((3, 100)), train=False)
    assert field.shape == (3, 128, 128, 2) and jnp.max(jnp.abs(field)) <= 1

    discriminator = dcgan.Discriminator(widths=(4, 8, 16, 32, 64))
    variables = discriminator.init(KEY, jnp.zeros((1, 128, 128, 1)), train=False)
    assert convolution_weights(variables["params"]) == 44_608
    assert discriminator.apply(variables, jnp.zeros((3, 128, 128, 1)), train=False).shape == (3,)


def test_batch_statistics_are_those_of_the_global_batch():
    """Two devices with half the batch each normalise like one with all of it."""
    discriminator = dcgan.Discriminator(widths=(4, 8))
    images = jax.random.normal(KEY, (8, 16, 16, 1))
    variables = discriminator.init(KEY, images, train=False)

    def run(variables, images):
        return discriminator.apply(variables, images, train=True, mutable=["batch_stats"])

    def on_devices(n):
        mapped = jax.pmap(run, axis_name=layers.AXIS, in_axes=(None, 0), out_axes=(0, None))
        out, stats = mapped(variables, images.reshape(n, 8 // n, 16, 16, 1))
        return out.reshape(8), stats

    one, two = on_devices(1), on_devices(2)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_widths_that_do_not_fit_the_image_are_named():
    with pytest.raises(UserError, match=r"model\.gen\.widths: 2 widths make networks for 16x16"):
        dcgan.check_widths("model.gen.widths", (8, 4), 128)
