import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tifffile
from builders import overridden
from etils import epath
from PIL import Image

from configs import unconditional
from deformgan import losses, optim, orientation, parallel, sample, step, styling, train
from deformgan.checkpoint import Checkpoints
from deformgan.data.feed import make_feed
from deformgan.data.scaling import Depth, Scaling
from deformgan.errors import UserError
from deformgan.models import dcgan, layers
from deformgan.models.layers import AXIS
from deformgan.objectives import shown
from deformgan.objectives import unconditional as objectives
from deformgan.objectives.contract import Aux, Inputs
from deformgan.objectives.shown import Space
from deformgan.state import Pair
from deformgan.step import initial_state, make_step

VARIANTS = ("", "reported", "collapse", "diffaugment", "stylegan2", "ada", "r3gan", "small")
EVERY = {  # everything lazy is due, and p moves, within a few steps
    "augment__kimg": 0.2,
    "augment__interval": 2,
    "augment__target": -1.0,
    "augment__geometric": (),  # resampling takes long to compile; traced below
    "loss__path_length_every": 2,
    "loss__penalty_every": 2,
    "data__count": 48,
    "checkpoint__every": 4,
}


def config(variants, **overrides):
    return overridden(unconditional.get_config(variants), overrides)


def template(settings):
    objective = objectives.create(settings)
    every = Pair(gen=objective.gen_penalty_every, disc=objective.penalty_every)
    optimisers = optim.make(settings.optimiser, every)
    state = jax.eval_shape(lambda: initial_state(objective, optimisers, {}, settings.seed))
    return state, objective, optimisers


def final_state(path, settings):
    checkpoints = Checkpoints(epath.Path(path) / "checkpoints", best="", writable=False)
    state, _ = checkpoints.restore(template(settings)[0])
    checkpoints.close()
    return state


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of StyleGAN2 with all that it can do, in one go."""
    path = tmp_path_factory.mktemp("unconditional") / "run"
    train.run(config("ada,smoke", **EVERY, train__steps=8), str(path))
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_makes_a_step(variant):
    """Traced on two devices and not compiled, which would take minutes."""
    settings = config(f"{variant},smoke")
    state, objective, optimisers = template(settings)
    images = np.zeros((16, 32, 32, 3), np.float32)
    feed = make_feed(images, 8, 0, process=0, processes=1)
    call = parallel.map_devices(make_step(objective, optimisers, feed, settings), axis_name=AXIS)
    new, metrics = jax.eval_shape(call, state, {}, feed.resident, {}, parallel.positions(8))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert ("gen/path" in metrics) == (variant in ("stylegan2", "ada"))
    assert ("disc/augment_probability" in metrics) == (variant == "ada")
    assert ("disc/r1" in metrics) == (variant not in ("reported", "collapse", "diffaugment"))


def test_a_resumed_run_equals_an_unbroken_one_with_all_running_values(run, tmp_path, capsys):
    """The probability of ADA, the mean path length and the mean w are in the checkpoint."""
    path = tmp_path / "run"
    train.run(config("ada,smoke", **EVERY, train__steps=4), str(path))
    settings = config("ada,smoke", **EVERY, train__steps=8)
    early = final_state(path, settings)
    train.run(settings, str(path))
    assert "resuming from step 4" in capsys.readouterr().out
    whole, resumed = final_state(run, settings), final_state(path, settings)
    assert_equal(whole, resumed)
    for state, probability in ((early, 4 * 8 / 200), (whole, 8 * 8 / 200)):
        adaptation = state.variables.disc["batch_stats"]["adaptation"]
        np.testing.assert_allclose(adaptation.probability, probability, rtol=1e-5)
        assert state.variables.gen["batch_stats"]["path_length"] > 0
        assert np.any(state.variables.gen["batch_stats"]["mean_w"])


def drawn(run, out, **options):
    defaults = {"num": 3, "form": "npz", "seed": 1, "step": "newest"}
    sample.run(str(run), None, out=str(out), **defaults | options)
    manifest = json.loads((out / "manifest.json").read_text())
    return np.load(out / "samples.npz")["images"], manifest


def test_truncation_pulls_samples_together(run, tmp_path):
    whole, _ = drawn(run, tmp_path / "a")
    none, manifest = drawn(run, tmp_path / "b", truncation=0.0)
    assert whole.shape == (3, 32, 32, 3) and manifest["truncation"] == 0
    assert none.astype(float).std(0).mean() < 0.3 * whole.astype(float).std(0).mean()


def test_strips_begin_and_end_at_samples(run, tmp_path):
    whole, _ = drawn(run, tmp_path / "a")
    path, manifest = drawn(run, tmp_path / "b", interpolate=4)
    assert len(path) == manifest["images"] == 2 * 5 + 1
    np.testing.assert_allclose(path[0].astype(float), whole[0], atol=1)
    apart = np.abs(np.diff(path.astype(float), axis=0)).mean((1, 2, 3))
    assert apart.max() < np.abs(path[5].astype(float) - path[0]).mean()  # small steps
    with Image.open(tmp_path / "b/strip.png") as strip:
        assert strip.size == (5 * 32, 3 * 32)


def test_an_image_is_found_again_in_the_space_of_styles(run, tmp_path, monkeypatch):
    monkeypatch.setattr(styling, "STEPS", 60)
    images, _ = drawn(run, tmp_path / "a", seed=5)
    Image.fromarray(images[2]).save(tmp_path / "target.png")
    found, manifest = drawn(run, tmp_path / "b", project=str(tmp_path / "target.png"))
    saved = np.load(tmp_path / "b/projection.npz")
    assert saved["w"].shape == (8, 16) and saved["target"].shape == (32, 32, 3)
    error = np.sqrt(np.mean(np.square(found[0] / 127.5 - 1 - saved["target"])))
    np.testing.assert_allclose(manifest["error"], error, atol=0.005)
    assert manifest["error"] < 0.7 * manifest["error_of_start"]


FLOATS = Depth("uint16", 0.25 / 65535, -0.125)
SIGNED = Depth("uint8", 1.0, -20.0)


@pytest.mark.parametrize("depth", [FLOATS, SIGNED])
def test_a_target_is_one_of_the_data_or_one_that_was_written(tmp_path, depth):
    """In another depth than it is written: of floating-point numbers, or signed."""
    low, high = depth.offset, depth.offset + depth.step * np.iinfo(depth.dtype).max
    scaling = Scaling("range", low, high, 0.0, depth)
    original = np.linspace(low, high, 32 * 32).reshape(32, 32)
    original = original.astype(np.float32) if depth is FLOATS else np.int16(original)
    wanted = scaling.inward(original)[..., None]
    data = config("smoke", data__channels=1).data
    file = str(tmp_path / "target.tif")
    for image in (original, scaling.outward(wanted)[..., 0]):
        tifffile.imwrite(file, image)
        np.testing.assert_allclose(styling.read_target(file, data, scaling), wanted, atol=1e-4)
    other = np.uint8 if depth is FLOATS else np.float32
    for image in (original.astype(other), np.full((32, 32), 2**14, np.int16)):
        tifffile.imwrite(file, image)
        with pytest.raises(
            UserError, match=rf"holds {image.dtype}, the run's images {depth.dtype}"
        ):
            styling.read_target(file, data, scaling)


def test_bad_requests_of_samples_are_named(run, tmp_path):
    for message, options in {
        r"truncation: 1\.5; give a factor": {"truncation": 1.5},
        r"interpolate: 3; give 0 or more, with --num=2": {"interpolate": 3, "num": 1},
        "project: give it without --interpolate": {"project": "x.png", "interpolate": 2},
        r"project: x\.png does not exist": {"project": "x.png"},
    }.items():
        with pytest.raises(UserError, match=message):
            drawn(run, tmp_path / "out", **options)


def test_a_basic_gan_with_every_remedy_trains_and_has_no_styles(tmp_path):
    remedies = {
        "model__spectral_norm": True,
        "model__minibatch_discrimination": 4,
        "model__space": "orientation",
        "loss__label_smoothing": 0.1,
        "augment__noise": 0.2,
        "augment__noise_steps": 3,
        "augment__dihedral": True,
        "train__disc_updates": 2,
        "data__count": 48,
        "checkpoint__every": 2,
    }
    settings = config("reported,smoke", **remedies, train__steps=4)
    train.run(settings, str(tmp_path / "whole"))
    state = final_state(tmp_path / "whole", settings)
    assert [int(own[0].count) for own in (state.opt.disc, state.opt.gen)] == [8, 4]
    assert any("sigma" in name for name in state.variables.disc["batch_stats"]["SpectralNorm_0"])
    images, _ = drawn(tmp_path / "whole", tmp_path / "out")
    shape = np.load(tmp_path / "out/samples.npz")["orientation"].shape
    assert images.shape == (3, 32, 32, 3) and shape == (3, 32, 32, 4)
    for flag, value in (("truncation", 0.5), ("interpolate", 2)):
        with pytest.raises(UserError, match=f"{flag}: this run's generator has no styles"):
            drawn(tmp_path / "whole", tmp_path / "no", **{flag: value})


def test_a_lazy_penalty_of_either_player_is_the_full_one_on_average():
    """Value and gradient over an interval; statistics move only when it is due."""

    def penalty(params, inputs):
        stats = inputs.variables.gen["batch_stats"] + 1
        return jnp.sum(params**2), Aux({"gen/p": jnp.sum(params**2)}, stats)

    params = jnp.array([1.0, 2.0])
    both = Pair(gen={"params": params, "batch_stats": jnp.zeros(())}, disc={})
    lazy = step.Lazy(penalty, 3, Inputs(both, {}, {}, jax.random.split(jax.random.key(0), 2)))

    def value(params, number):
        turn = step.Turn("gen", optax.sgd(1.0), lazy, number)
        return step._lazy_penalty(turn, params, jnp.zeros(()))

    found = [jax.value_and_grad(value, has_aux=True)(params, jnp.int32(n)) for n in range(6)]
    np.testing.assert_allclose(np.mean([v for (v, _), _ in found]), 5.0)
    np.testing.assert_allclose(np.mean([g for _, g in found], 0), 2 * params)
    assert [float(aux.stats) for (_, aux), _ in found] == [1, 0, 0, 1, 0, 0]


def test_an_average_halves_in_its_images_after_its_ramp():
    settings = unconditional.get_config().optimiser
    settings.ema_images, settings.ema_ramp = 1000, 0.0
    decay = optim.averaging(settings, 10)
    np.testing.assert_allclose(float(decay(0)) ** 100, 0.5, rtol=1e-5)
    settings.ema_ramp = 0.05
    ramped = optim.averaging(settings, 10)
    np.testing.assert_allclose(ramped(199), 0.5 ** (10 / 100), rtol=1e-5)
    np.testing.assert_allclose(ramped(5000), decay(0), rtol=1e-6)


def test_lazily_penalised_players_have_slower_adams():
    settings = unconditional.get_config("stylegan2").optimiser
    pair = optim.make(settings, Pair(gen=4, disc=16))
    params = jnp.ones(1)
    for one, share in ((pair.gen, 4 / 5), (pair.disc, 16 / 17)):
        change, _ = one.update(jnp.ones(1), one.init(params), params)
        np.testing.assert_allclose(change, -0.0025 * share, rtol=1e-4)


def test_smoothed_labels_have_their_optimum_at_the_target():
    loss = losses.by_name("non_saturating", smoothing=0.1)
    best = jnp.array([math.log(9.0)])  # where D says 0.9
    slope = jax.grad(lambda real: jnp.sum(loss(real, jnp.zeros(1)).disc))(best)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    with pytest.raises(UserError, match="label_smoothing: 0.1 with hinge; give 0 to 0.5"):
        losses.by_name("hinge", smoothing=0.1)


def test_dropout_is_an_examples_own_and_keeps_the_mean():
    keys, x = jax.random.split(jax.random.key(0), 8), jnp.ones((8, 20, 20, 4))
    out = layers.dropout(x, keys, 0, 0.25)
    np.testing.assert_array_equal(layers.dropout(x[2:4], keys[2:4], 0, 0.25), out[2:4])
    np.testing.assert_allclose(jnp.mean(out), 1, atol=0.02)
    np.testing.assert_allclose(jnp.mean(out == 0), 0.25, atol=0.02)
    assert (out[0] != out[1]).any() and (layers.dropout(x, keys, 1, 0.25) != out).any()


def test_minibatch_discrimination_counts_what_is_alike_in_a_group():
    x = jax.random.normal(jax.random.key(0), (16, 12)) * 1000
    x = x.at[:8].set(x[0])
    judge = layers.MinibatchDiscrimination(3)
    found = judge.apply(judge.init(jax.random.key(1), x), x)
    np.testing.assert_allclose(found[:8], 7.0)  # seven copies of each
    assert found.shape == (16, 3) and (found[8:] < 1).all()


def test_a_spectrally_normed_discriminator_is_blind_to_the_scale_of_its_weights():
    judge = dcgan.Discriminator((4, 8), batch_norm=False, spectral_norm=True)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = judge.init(jax.random.key(1), images, train=False)

    def out(scale):
        own = {**variables, "params": jax.tree.map(lambda w: scale * w, variables["params"])}
        for _ in range(30):
            found, updated = judge.apply(own, images, train=True, mutable=["batch_stats"])
            own = own | updated
        return found

    np.testing.assert_allclose(out(1.0), out(50.0), rtol=1e-3)


@pytest.mark.parametrize("name", ["rgb", "orientation"])
def test_real_images_are_turned_with_their_directions(name):
    angle = jnp.full((64, 4, 4), math.radians(30))
    flat = orientation.Orientation(angle, jnp.zeros_like(angle), jnp.ones_like(angle))
    keys = jax.random.split(jax.random.key(0), 64)
    images = shown.turned(keys, orientation.encode(flat, name), Space(name, True))
    seen = np.round(np.degrees(orientation.decode(images, name).direction[:, 0, 0]))
    assert set(seen) == {30, 60, 120, 150}


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        (r"model\.name: unknown name 'vae'", {"model__name": "vae"}),
        (r"model\.space: unknown name 'hsv'", {"model__space": "hsv"}),
        (
            r"model\.space: 'orientation' needs maps",
            {"model__space": "orientation", "augment__oriented": False},
        ),
        (r"loss\.path_length: a DCGAN has no styles", {"loss__path_length": 2.0}),
        (r"model\.spectral_norm: True; only .* DCGAN", {"model__name": "stylegan2"}),
        (r"model\.dtype: unknown name 'float16'", {"model__dtype": "float16"}),
        (r"model\.mixing: 1\.5; give a probability", {"model__mixing": 1.5}),
        (r"model\.mapping_layers: 0; give 1 or more", {"model__mapping_layers": 0}),
        (
            r"model\.minibatch_stddev: False, but StyleGAN2 always has it",
            {"model__name": "stylegan2", "model__minibatch_stddev": False},
        ),
        (
            r"model\.disc_batch_norm: True; only .* DCGAN",
            {"model__name": "stylegan2", "model__disc_batch_norm": True},
        ),
        (r"model\.disc_dropout: 1\.0; give a share", {"model__disc_dropout": 1.0}),
        (r"model\.disc_widths: 4 widths", {"model__disc_widths": (4, 4, 4, 4)}),
        (r"augment\.saturation: 1\.0; it would change", {"augment__saturation": 1.0}),
        (
            r"the space 'orientation' has no colours",
            {"model__space": "orientation", "augment__contrast": 0.5},
        ),
        (r"augment\.geometric: unknown name 'warp'", {"augment__geometric": ("warp",)}),
    ],
)
def test_settings_that_do_not_fit_are_named(message, overrides):
    with pytest.raises(UserError, match=message):
        objectives.create(config("smoke", model__spectral_norm=True, **overrides))


def test_small_comes_after_the_method():
    for variants in ("small,stylegan2", "small,smoke,ada"):
        with pytest.raises(ValueError, match="undoes 'small' before it; small comes after"):
            unconditional.get_config(variants)
    assert unconditional.get_config("ada,small,smoke").model.name == "stylegan2"


def test_stylegan2_can_follow_the_basic_gan():
    assert objectives.create(config("reported,stylegan2,smoke")).styles is not None


def test_ordinary_colours_are_told_that_they_are_taken_for_directions():
    tiles = types.SimpleNamespace(train=np.eye(8).reshape(1, 8, 8, 1) * [1, 0, 0])
    for source, told in (("folder", True), ("tfds", True), ("pli", False), ("pyramid", False)):
        said = []
        objectives.create(config("smoke", data__source=source)).fit(tiles, said.append)
        assert ["set augment.oriented=False" in line for line in said] == [True] * told
    said = []
    plain = config("smoke", data__source="folder", augment__oriented=False)
    objectives.create(plain).fit(tiles, said.append)
    assert not said


def test_a_strong_discriminator_is_what_collapses():
    reported, collapse = (unconditional.get_config(v).model for v in ("reported", "collapse"))
    assert len(collapse.disc_widths) > len(reported.disc_widths)
    assert reported.disc_dropout > 0 == collapse.disc_dropout


def test_grey_tiles_are_not_taken_for_directions():
    grey = np.repeat(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), 3, -1)
    tiles = types.SimpleNamespace(train=grey)
    with pytest.raises(UserError, match=r"augment\.oriented: True, but the images .* are grey"):
        objectives.create(config("smoke")).fit(tiles, print)
    objectives.create(config("smoke", augment__oriented=False)).fit(tiles, print)
