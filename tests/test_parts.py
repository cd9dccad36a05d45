import builders_atlas
import jax
import numpy as np
import pytest
from builders_atlas import SHAPE

from deformgan.camera import Camera
from deformgan.imaging import parts, template
from deformgan.imaging.atlas import Fitted, Motion, render
from deformgan.imaging.template import Settings

SETTINGS = Settings(SHAPE, somata=2, subset=10, images=10)


@pytest.mark.parametrize("moved", [("pose",), ("pose", "shared", "gain", "soma_gain")])
def test_what_the_images_do_not_need_is_left_out(moved, monkeypatch):
    """Registered with everything: images that somata alone make, and others."""
    atlas, truth = builders_atlas.atlas(blur=1.0), builders_atlas.motions(0, batch=10)
    still = {name: 0 * part for name, part in truth._asdict().items() if name not in moved}
    truth = truth._replace(**still)
    clean = np.asarray(render(atlas, truth, SHAPE.grid))
    images = np.clip(clean + np.random.default_rng(0).normal(0, 0.02, clean.shape), 0, 1)
    start = Motion(*(np.array(part) for part in truth))
    camera = Camera.create(read=0.02, step=1 / 255)
    monkeypatch.setattr(parts, "PARTS", {("shared",): "a field"})
    settings, fitted = parts.chosen(images, Fitted(atlas, start), camera, SETTINGS)
    assert ("shared" in settings.still) == ("shared" not in moved)
    for name in settings.still:
        assert np.abs(getattr(fitted.motion, name)).max() < 1e-3
    seen = np.asarray(render(fitted.atlas, jax.tree.map(np.asarray, fitted.motion), SHAPE.grid))
    assert np.sqrt(np.mean(np.square(seen - clean))) < 0.015
    told = "need every part" if "shared" in moved else "do without a field"
    assert parts.in_words(settings) == told


def test_a_prior_holds_still_what_is_left_out():
    whole = template.start_covariance(SETTINGS, 2)
    held = template.start_covariance(Settings(SHAPE, 2, 10, 10, still=("own",)), 2)
    ratio = np.sqrt(np.diag(held) / np.diag(whole))
    shared, own = (2 * n**2 for n in (SHAPE.shared, SHAPE.own))
    np.testing.assert_allclose(ratio[shared : shared + own], 1e-4)
    np.testing.assert_allclose(np.delete(ratio, np.s_[shared : shared + own]), 1)
