import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import overridden
from etils import epath
from matplotlib.image import imread

from configs import pix2pix
from deformgan import losses, optim, orientation, parallel, report, sample, train
from deformgan.checkpoint import Checkpoints
from deformgan.data.feed import make_feed
from deformgan.errors import Interrupted, UserError
from deformgan.log import Log, read_metrics
from deformgan.models import layers, patchgan, unet
from deformgan.models.layers import AXIS
from deformgan.monitor import Monitor
from deformgan.objectives import adversarial, shown
from deformgan.objectives import pix2pix as objectives
from deformgan.objectives.contract import Generated, Inputs, Samples
from deformgan.objectives.shown import Space
from deformgan.state import Pair
from deformgan.step import initial_state, made_once, make_step
from deformgan.workdir import Workdir, flat, to_json

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 4)
VARIANTS = ("", "reported", "orientation", "pairs", "facades", "smoke", "orientation,smoke")


def config(variants="smoke", **overrides):
    return overridden(pix2pix.get_config(variants), overrides)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def oriented(direction, inclination=0.0, shape=(2, 4, 4)):
    """Tissue of one orientation in the space of that name; degrees."""
    angles = [jnp.full(shape, math.radians(angle)) for angle in (direction, inclination)]
    return orientation.encode(orientation.Orientation(*angles, jnp.ones(shape)), "orientation")


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_a_unet_gives_back_the_size_down_to_one_pixel(size):
    network = unet.UNet(3, filters=2, depth=unet.depth_for(size, 0))
    assert 2**network.depth == size
    x = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(KEY, x, train=False), x)
    out = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, x)
    assert out.shape == (2, size, size, 3)
    assert variables["params"][f"StridedConv_{network.depth - 1}"]["kernel"].shape[-1] == 16


def test_the_networks_have_the_sizes_of_the_authors():
    """Theirs print 54.414 M for U-Net 256, and 2.769 M for 70x70, whose first layer has a bias."""
    images = jax.ShapeDtypeStruct((1, 256, 256, 6), jnp.float32)

    def parameters(network, channels):
        image = jax.ShapeDtypeStruct((*images.shape[:3], channels), jnp.float32)
        return jax.eval_shape(lambda x: network.init(KEY, x, train=False), image)["params"]

    assert count(parameters(unet.UNet(3, 64, 8), 3)) == 54_413_955
    assert count(parameters(patchgan.PatchGAN(3, 64), 6)) == 2_768_705 - 64


def test_depth_follows_the_size_or_the_config():
    assert [unet.depth_for(s, 0) for s in (64, 96, 256)] == [6, 5, 8]
    assert unet.depth_for(64, 3) == 3
    with pytest.raises(UserError, match=r"model\.depth: 6 halvings do not fit data\.size 96"):
        unet.depth_for(96, 6)


@pytest.mark.parametrize(("strided", "side"), [(0, 1), (1, 16), (2, 34), (3, 70)])
def test_an_output_sees_its_receptive_field_and_no_more(strided, side):
    network = patchgan.PatchGAN(strided, filters=2)
    images = jax.random.normal(KEY, (1, 128, 128, 1))

    def centre(images):
        out, _ = network.init_with_output(KEY, images, train=False)
        assert out.shape == (1, 128 // 2**strided - 2 * bool(strided), out.shape[1])
        return out[0, out.shape[1] // 2, out.shape[2] // 2]

    seen = np.argwhere(np.asarray(jax.jit(jax.grad(centre))(images))[0, ..., 0])
    assert (np.ptp(seen, 0) + 1 == side).all() and patchgan.receptive_field(strided) == side
    assert [patchgan.receptive_field(n) for n in (4, 5)] == [142, 286]


def test_dropout_is_the_noise_and_instance_norm_keeps_images_apart():
    network = unet.UNet(1, filters=2, depth=2, norm="instance")
    x = jax.random.normal(KEY, (4, 8, 12, 1))

    @jax.jit
    def run(x, keys):
        quiet, variables = network.init_with_output(KEY, x, train=True)
        return quiet, network.apply(variables, x, train=False, keys=keys)

    quiet, noisy = run(x, KEYS)
    parts = run(x[1:3], KEYS[1:3])
    np.testing.assert_allclose(parts[0], quiet[1:3], atol=1e-5)
    np.testing.assert_allclose(parts[1], noisy[1:3], atol=1e-5)
    assert (noisy != quiet).any() and (noisy[1] != quiet[1]).any()


def test_a_small_strided_convolution_takes_the_fast_form_of_the_same_sum():
    x = jax.random.normal(KEY, (2, 2, 2, 12))
    kernel = jax.random.normal(KEY, (4, 4, 12, 5))
    np.testing.assert_allclose(
        layers.strided_conv(x, kernel), layers._strided_plain(x, kernel), rtol=1e-4, atol=1e-4
    )


def test_the_axial_loss_does_not_know_the_ends_of_a_fibre_nor_how_the_plane_is_turned():
    made, wanted = oriented(20), oriented(50)
    np.testing.assert_allclose(
        losses.axial(oriented(200), wanted), losses.axial(made, wanted), rtol=1e-4
    )
    np.testing.assert_allclose(losses.axial(oriented(230), wanted), 0, atol=1e-5)
    np.testing.assert_allclose(
        losses.axial(made, wanted), 2 * math.sin(math.radians(30)), rtol=1e-4
    )
    angle, mirrored = jnp.array([0.3, 1.1]), jnp.array([False, True])
    turned = [orientation.turned(x, angle, mirrored, "orientation") for x in (made, wanted)]
    np.testing.assert_allclose(losses.axial(*turned), losses.axial(made, wanted), rtol=1e-4)
    assert (jnp.abs(losses.l1(*turned) - losses.l1(made, wanted)) > 0.01).all()


def test_the_axial_loss_minds_directions_less_in_steep_fibres_and_is_smooth_at_the_truth():
    steep = losses.axial(oriented(0, 80), oriented(90, 80))
    np.testing.assert_allclose(steep, 2 * math.cos(math.radians(80)), rtol=1e-3)
    inclined = losses.axial(oriented(0, 30), oriented(0, 60))
    np.testing.assert_allclose(inclined, 2 / 3, rtol=1e-4)  # of a range of 2
    background = jnp.tile(jnp.array([0.0, 0, 1, -1]), (2, 4, 4, 1))
    assert (losses.axial(oriented(0), background) > 3).all()
    slope = jax.grad(lambda x: jnp.sum(losses.axial(x, oriented(10))))(oriented(10))
    assert jnp.isfinite(slope).all()


def test_distances_at_known_points():
    a, b = jnp.zeros((2, 16, 16, 3)), jnp.full((2, 16, 16, 3), 0.5)
    np.testing.assert_allclose(losses.distance("l1")(a, b), 0.5)
    np.testing.assert_allclose(losses.distance("l2")(a, b), 0.25)
    x = jax.random.uniform(KEY, (2, 16, 16, 3), minval=-1.0)
    np.testing.assert_allclose(losses.dissimilarity(x, x), 0, atol=1e-5)
    assert (losses.dissimilarity(x, -x) > 0.5).all()
    np.testing.assert_allclose(losses.feature_matching([a, a], [b, 3 * b]), 1.0)
    with pytest.raises(UserError, match=r"loss\.pixel: unknown name 'l3'"):
        losses.distance("l3")


def test_rates_fall_to_nothing_over_the_last_share_of_the_updates():
    fade = optim.fading(0.5, 100)
    np.testing.assert_allclose([fade(n) for n in (0, 50, 75, 99, 100)], [1, 1, 0.5, 0.02, 0])
    assert optim.fading(1.0, 100) is None
    settings = config(optimiser__decay_from=0.0, train__steps=4, train__disc_updates=2)
    pair = optim.make(settings.optimiser, updates=optim.updates(settings.train))
    moved, params = {}, jnp.ones(1)
    for player in ("gen", "disc"):
        own = getattr(pair, player)
        state, moved[player] = own.init(params), []
        for _ in range(4):
            change, state = own.update(params, state)
            moved[player].append(float(change[0]) / -2e-4)
    np.testing.assert_allclose(moved["gen"], [1, 0.75, 0.5, 0.25], rtol=1e-4)
    np.testing.assert_allclose(moved["disc"], [1, 0.875, 0.75, 0.625], rtol=1e-4)


def test_inputs_and_targets_are_turned_and_shifted_alike():
    keys = jax.random.split(KEY, 16)
    given = jax.random.uniform(KEY, (16, 8, 8, 1), minval=-1.0)
    colours = jnp.concatenate([given, -jnp.ones((16, 8, 8, 2))], -1)  # hue 0: along the columns
    space = Space("rgb", True)

    @jax.jit
    def arranged(keys, given, colours):
        moved = shown.shifted(keys, shown.turned(keys, given, shown.UNCODED), 2)
        target = shown.shifted(keys, shown.turned(keys, colours, space), 2)
        return moved, target, shown.shifted(keys, given, 2), orientation.decode(target, "rgb")

    moved, target, shifted, seen = jax.device_get(arranged(keys, given, colours))
    np.testing.assert_allclose(np.max(target, -1, keepdims=True), moved, atol=1e-6)
    assert (moved != given).any((1, 2, 3)).sum() > 12
    assert set(np.unique(shifted)) <= set(np.unique(given))  # no colour is made up
    assert shown.shifted(keys, given, 0) is given
    upright = seen.direction[target.max(-1) > target[..., 0] + 0.1]
    assert len(upright) and np.allclose(upright, math.pi / 2, atol=0.02)


def test_the_discriminator_sees_input_and_image_moved_alike_and_only_the_image_recoloured():
    settings = config(augment__translation=0.2, augment__cutout=0.3, augment__brightness=0.5)
    show = shown.augmentation(settings, Space("rgb", True, 3))
    given = jax.random.uniform(KEY, (4, 16, 16, 1), minval=0.1)
    both = jnp.concatenate([given, jnp.repeat(given, 3, -1)], -1)
    out = jax.jit(lambda images: show(KEYS, images, {}, 0))(both)
    cut = out[..., :1] == 0
    np.testing.assert_array_equal(out[..., 1:] == 0, jnp.repeat(cut, 3, -1))
    assert set(np.unique(out[..., 0])) <= {0.0, *np.unique(given)}
    light = jnp.where(cut, jnp.nan, out[..., 1:2] - out[..., :1])
    spread = jnp.nanmax(light, (1, 2, 3)) - jnp.nanmin(light, (1, 2, 3))
    assert (spread < 1e-5).all() and (jnp.abs(jnp.nanmean(light, (1, 2, 3))) > 1e-3).all()


def traced(settings, inputs, channels=3, size=32):
    objective = objectives.create(settings)
    every = Pair(gen=0, disc=objective.penalty_every)
    optimisers = optim.make(settings.optimiser, every, optim.updates(settings.train))
    state = jax.eval_shape(lambda: initial_state(objective, optimisers, {}, settings.seed))
    batch = settings.train.batch_size
    images = np.zeros((2 * batch, size, size, channels), np.float32)
    conditions = np.zeros((2 * batch, size, size, inputs), np.float32)
    feed = make_feed(images, batch, 0, process=0, processes=1, conditions=conditions)
    call = parallel.map_devices(make_step(objective, optimisers, feed, settings), axis_name=AXIS)
    new, metrics = jax.eval_shape(call, state, {}, feed.resident, {}, parallel.positions(batch))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    return metrics


@pytest.mark.parametrize("variant", ["", "reported", "orientation", "pairs", "facades"])
def test_every_variant_makes_a_step(variant):
    """Traced on two devices and not compiled."""
    settings = config(f"{variant},smoke")
    metrics = traced(settings, 3 if variant in ("pairs", "facades") else 1)
    assert f"gen/{'axial' if variant == 'orientation' else 'l1'}" in metrics


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss__ssim": 1.0, "loss__feature_matching": 1.0, "loss__pixel": "l2"},
        {"loss__name": "hinge", "loss__r1": 1.0, "loss__r2": 0.5, "model__norm": "instance"},
        {"loss__name": "relativistic", "augment__adaptive": True, "model__disc_layers": 0},
        {
            "loss__name": "hinge_embedding",
            "model__dtype": "bfloat16",
            "model__depth": 2,
            "model__disc_dropout": 0.2,
            "data__inputs": "transmittance,retardation",
        },
    ],
)
def test_options_make_a_step(overrides):
    settings = config(**overrides)
    metrics = traced(settings, 2 if "data__inputs" in overrides else 1)
    assert (
        ("gen/dissimilarity" in metrics)
        == ("gen/features" in metrics)
        == ("loss__ssim" in overrides)
    )
    assert ("disc/r1" in metrics) == ("loss__r1" in overrides)


@pytest.mark.parametrize("variants", VARIANTS)
def test_variants_keep_the_keys_and_their_types(variants):
    base, varied = (flat(to_json(pix2pix.get_config(v))) for v in ("", variants))
    assert base.keys() == varied.keys()
    assert all(type(base[k]) is type(varied[k]) for k in base)


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        (r"data\.pairs: False, but pix2pix predicts", {"data__pairs": False}),
        (r"loss\.pixel: 'axial' compares directions", {"loss__pixel": "axial"}),
        (r"model\.norm: unknown name 'layer'", {"model__norm": "layer"}),
        (r"model\.depth: 6 halvings do not fit", {"model__depth": 6}),
        (r"model\.disc_layers: 4 halvings do not fit", {"model__disc_layers": 4}),
        (r"model\.disc_layers: 6; give 0 to 5", {"model__disc_layers": 6}),
        (r"model\.dropout: 1\.0; give a share", {"model__dropout": 1.0}),
        (r"loss\.pixel_weight, .*: give weights", {"loss__pixel_weight": -1.0}),
        (r"augment\.jitter: 32; give pixels", {"augment__jitter": 32}),
        (
            r"data\.inputs: 'fom' encodes directions",
            {"data__modality": "retardation", "data__channels": 1, "data__inputs": "fom"},
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(message, overrides):
    with pytest.raises(UserError, match=message):
        objectives.create(config(**overrides))


def test_a_prepared_dataset_may_call_its_inputs_as_it_likes():
    """Those of data.inputs are modalities in some sources only, and only there turned or not."""
    settings = config(data__source="tfds", data__inputs="drawing")
    assert settings.augment.dihedral
    objectives.create(settings)


def test_the_networks_drop_out_by_draws_of_their_own():
    """Under one key for both, as in gradient penalties."""
    seen = []

    class Judge:
        def apply(self, variables, images, *, train, keys, mutable):
            seen.append(keys)
            return jnp.mean(images, (1, 2, 3)), {}

    def generate(variables, inputs):
        return Generated(inputs.batch["images"], {}, {})

    images = jnp.zeros((4, 8, 8, 3))
    inputs = Inputs(Pair({}, {"batch_stats": {}}), {"images": images}, {}, KEYS)
    adversarial.game(generate, Judge(), config(loss__r1=1.0)).penalty({}, inputs)
    (keys,) = seen
    own = shown.fold(KEYS, shown.Draw.DROPOUT)
    assert (jax.random.key_data(keys) != jax.random.key_data(own)).any(-1).all()


def test_both_players_see_images_made_once_and_the_generator_learns_as_if_it_made_them_again():
    settings = config(model__gen_filters=4, model__disc_filters=4, loss__feature_matching=1.0)
    objective, calls = objectives.create(settings), []

    def counted(variables, inputs):
        calls.append(inputs)
        return objective.shared(variables, inputs)

    size, optimisers = settings.data.size, optim.make(settings.optimiser)
    variables = initial_state(objective, optimisers, {}, 0).variables
    batch = {"images": jax.random.uniform(KEY, (4, size, size, 3), minval=-1)}
    batch["conditions"] = batch["images"][..., :1]
    inputs = Inputs(variables, batch, {}, KEYS)

    def learned(inputs):
        of_gen = jax.value_and_grad(objective.gen_loss, has_aux=True)
        of_disc = objective.disc_loss(variables.disc["params"], inputs)
        return of_disc, of_gen(variables.gen["params"], inputs)

    def both(inputs):
        replay = made_once(counted, inputs)
        return learned(inputs), learned(inputs._replace(replay=replay))

    mapped = jax.vmap(both, in_axes=None, axis_name=AXIS, axis_size=1)
    twice, once = jax.jit(mapped)(inputs)
    assert len(calls) == 1
    for wanted, found in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_rates_that_jump_with_the_number_of_steps_are_told(capsys):
    before = {"train": {"steps": 8}}
    for step, steps, said in ((8, 16, "jump from 0% to 100% of their"), (4, 16, ""), (6, 8, "")):
        train._tell_of_rates(before, config(train__steps=steps, optimiser__decay_from=0.5), step)
        out = capsys.readouterr().out
        assert said in out and bool(said) == ("warning: train.steps was 8 and is 16" in out)


def test_scores_of_predictions_at_known_errors():
    def colours(direction):
        return orientation.to_rgb(oriented(direction), "orientation")

    def scored(made, wanted):
        samples = Samples(made, {}, {})
        real = jnp.concatenate([wanted, wanted])
        return jax.jit(lambda *of: objectives.monitor(*of, oriented=True))(samples, real)

    np.testing.assert_allclose(scored(colours(170), colours(10))["axial_error"], 20, atol=0.01)
    noise = jax.random.normal(KEY, (2, 4, 4, 3)) / 10
    found = scored(colours(10) + noise, colours(10))
    np.testing.assert_allclose(found["mse"], np.mean((127.5 * np.asarray(noise)) ** 2), rtol=1e-3)


def test_ordinary_colours_are_told_that_they_are_taken_for_directions():
    paired = types.SimpleNamespace(conditions=(), train=np.eye(8).reshape(1, 8, 8, 1) * [1, 0, 0])
    for source, told in (("folders", True), ("pli", False)):
        said = []
        objectives.create(config(data__source=source)).fit(paired, said.append)
        assert ["set augment.oriented=False" in line for line in said] == [True] * told + [False]


def test_grey_targets_are_not_taken_for_directions():
    grey = np.repeat(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), 3, -1)
    paired = types.SimpleNamespace(conditions=(), train=grey)
    with pytest.raises(UserError, match=r"augment\.oriented: True, but the images .* are grey"):
        objectives.create(config(data__source="folders")).fit(paired, print)
    objectives.create(config("pairs,smoke")).fit(paired, print)
    paired.train = np.concatenate([grey, grey * [1, 1, 0.9]])
    objectives.create(config(data__source="folders")).fit(paired, print)


@pytest.mark.parametrize(
    ("size", "depth", "told"),
    [
        (100, 0, ["data.size 100 allows a U-Net of depth 2 alone", "96 and 128 are the nearest"]),
        (34, 0, ["U-Net of depth 1 alone", "32 and 48 are", "depth 1 has no dropout"]),
        (34, 1, ["depth 1 has no dropout"]),
        (100, 2, []),
        (96, 0, []),
    ],
)
def test_a_shallow_unet_is_pointed_out(size, depth, told):
    paired, said = types.SimpleNamespace(conditions=()), []
    settings = config("pairs,smoke", data__size=size, model__depth=depth, model__disc_layers=1)
    objectives.create(settings).fit(paired, said.append)
    warnings = " ".join(line for line in said if line.startswith("warning"))
    assert all(words in warnings for words in told) and bool(warnings) == bool(told)


def test_a_best_checkpoint_that_training_pairs_choose_is_pointed_out(capsys):
    pairs = np.zeros((4, 8, 8, 3), np.float32)
    for held, told in ((0, True), (1, True), (2, False)):
        given = types.SimpleNamespace(train=pairs, validation=pairs[:held])
        dataset = types.SimpleNamespace(train=pairs, validation=pairs[:held], conditions=given)
        Monitor(types.SimpleNamespace(), dataset, config()).prepare({}, {})
        said = f"warning: validation frames: {held}; mse, which chooses the best checkpoint, is"
        assert (said in capsys.readouterr().out) == told


def test_the_console_shows_the_errors_of_predictions(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shown = Log(Workdir(str(tmp_path / "run"), create=True), start=0, total=8)
    shown.write(4, {"disc/accuracy_real": 0.75, "diversity": 0.5})
    assert "  D real 0.75  diversity 0.5  " in capsys.readouterr().out
    shown.write(8, {"diversity": 0.5, "mse": 2123.4, "axial_error": 11.62})
    shown.close()
    assert "step 8/8  MSE 2123  axial error 11.6  steps/s" in capsys.readouterr().out


class Lazy(list):
    """Inputs that are read one at a time."""


def test_inputs_are_handed_out_in_their_order():
    class Copies:
        def sample(self, variables, constants, keys, conditions=None):
            return Samples(conditions, {}, {})

    inputs = Lazy(np.full((4, 4, 1), i, np.float32) for i in range(70))
    parts = list(sample.generate(Copies(), {}, {}, seed=0, num=70, conditions=inputs))
    assert [len(part.images) for part in parts] == [64, 6]
    np.testing.assert_array_equal(np.concatenate([p.images[:, 0, 0, 0] for p in parts]), range(70))
    with pytest.raises(ValueError, match="conditions: wanted 71, one a sample, got 70"):
        next(sample.generate(Copies(), {}, {}, seed=0, num=71, conditions=inputs))


def test_the_picture_has_rows_of_input_prediction_and_target(tmp_path):
    def grey(value, channels):
        return np.full((8, 8, 8, channels), value, np.float32)

    samples = Samples(grey(0.0, 3), {}, {})
    report.sample_grid(tmp_path / "a.png", samples, grey(1.0, 3), grey(0, 3)[0], grey(-1.0, 2))
    picture = imread(tmp_path / "a.png")[..., 0]
    rows = [picture[int((r + 0.55) / 3 * len(picture)), 80] for r in range(3)]
    np.testing.assert_allclose(rows, [0, 0.5, 1], atol=0.01)


def final_state(path, settings):
    objective = objectives.create(settings)
    optimisers = optim.make(settings.optimiser, updates=optim.updates(settings.train))
    state = jax.eval_shape(lambda: initial_state(objective, optimisers, {}, settings.seed))
    checkpoints = Checkpoints(epath.Path(path) / "checkpoints", best="", writable=False)
    state, meta = checkpoints.restore(state)
    checkpoints.close()
    return state, meta


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in the space of orientations in one go."""
    path = tmp_path_factory.mktemp("pix2pix") / "run"
    train.run(config("orientation,smoke", **SHORT, train__steps=8), str(path))
    return path


SHORT = {
    "data__count": 48,
    "checkpoint__every": 4,
    "log__every": 1,
    "log__pictures": 8,
    "optimiser__decay_from": 0.5,
    "optimiser__ema_decay": 0.5,
    "optimiser__gen__learning_rate": 1e-2,
    "model__depth": 3,
    "model__disc_layers": 1,
    "model__test_dropout": True,
}


def test_a_resumed_run_equals_an_unbroken_one(run, tmp_path, capsys, monkeypatch):
    """Stopped half-way and not made longer: the rates fall with train.steps."""
    path = tmp_path / "run"
    settings = config("orientation,smoke", **SHORT, train__steps=8)
    with monkeypatch.context() as stopping, pytest.raises(Interrupted):
        stopping.setattr(train.Training, "_preempted", lambda self: self.step == 4)
        train.run(settings, str(path))
    assert "U-Net of depth 3, down to 4x4; PatchGAN of 1 layers, each output sees 16x16" in (
        capsys.readouterr().out
    )
    train.run(settings, str(path))
    said = capsys.readouterr().out
    assert "resuming from step 4" in said and "learning rates" not in said
    (whole, meta), (resumed, _) = final_state(run, settings), final_state(path, settings)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert meta["input_scaling"]["high"] == 255
    objective = objectives.create(settings)
    start = initial_state(objective, optim.make(settings.optimiser), {}, settings.seed)
    for a, b in zip(
        jax.tree.leaves(start.variables), jax.tree.leaves(whole.variables), strict=True
    ):
        assert (np.asarray(a) != b).any()  # every parameter and statistic moves


def test_training_is_reported_in_scores_of_predictions(run):
    records = read_metrics(Workdir(str(run), create=False))
    assert records[-1]["gen/axial"] < 0.9 * records[0]["gen/axial"]
    assert records[-1]["mse"] > 0 and 0 < records[-1]["axial_error"] <= 90
    assert (run / "samples/step_00000008.png").exists() and (run / "report.html").exists()


def test_predictions_take_tiles_of_other_sizes_and_differ_by_key_if_dropout_is_on(run):
    settings = config("orientation,smoke", **SHORT, train__steps=8)
    state, _ = final_state(run, settings)
    conditions = jax.random.uniform(KEY, (2, 8, 16, 1), minval=-1.0)

    def predicted(keys, **overrides):
        objective = objectives.create(overridden(settings, overrides))
        return jax.jit(objective.sample)(state.ema, {}, keys, conditions)

    one, other = predicted(KEYS[:2]), predicted(KEYS[2:])
    assert one.images.shape == (2, 8, 16, 3)
    assert one.fields["orientation"].shape == (2, 8, 16, 4)
    assert (one.images != other.images).any()
    quiet = [predicted(k, model__test_dropout=False) for k in (KEYS[:2], KEYS[2:])]
    np.testing.assert_array_equal(quiet[0].images, quiet[1].images)
    with pytest.raises(ValueError, match="conditions: pix2pix predicts from inputs"):
        objectives.create(settings).sample(state.ema, {}, KEYS)
