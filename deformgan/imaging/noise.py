"""The camera's noise from the training images: its kind, its level, its correlation.

`estimate` needs nothing but images: flat patches share one unknown mean, and the likelihood of
their pixels, clipping and rounding included, is maximised. `choose_kind` and `refit` are for later,
when registration has found the noiseless image of every frame.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, optimize

from deformgan.camera import Camera, coloured, surroundings, variance
from deformgan.errors import choose, require_shape
from deformgan.imaging import flat_patches, noise_levels, noise_mixture, photon_comb
from deformgan.imaging.flat_patches import Curve
from deformgan.imaging.noise_correlation import (
    background_residuals,
    correlation_kernel,
    shared_variance,
)

KINDS = ("none", "gaussian", "poisson", "poisson_gaussian", "speckle")
_PIXELS = 2**22  # that patches are looked for in
_SAMPLE = 2**22  # pixels that `refit` looks at
_BANK = 64  # frames whose backgrounds are kept
_BLOCK = 16  # pixels: macroblocks of video, and multiples of the 8 of JPEG
_LENDERS = 4  # frames that lend what is missing from each place beside it
_MARGIN = 0.03  # of the side: what is so near to a structure is not called background
_LEVELS = 8  # of brightness, in equal ratios, at which noise of structures is measured
_CANDIDATES = ("gaussian", "poisson", "speckle", "poisson_gaussian")  # simplest first


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the images say about their camera.

    Attributes:
      camera: in unit intensity.
      kind: one of `KINDS`.
      background: the commonest noiseless intensity, below 0 if most noise is clipped.
      curve: variance against mean in flat patches.
    """

    camera: Camera
    kind: str
    background: float
    curve: Curve


def estimate(images: np.ndarray, step: float, seed: int = 0) -> Estimate:
    """Finds kind, level and correlation of the noise.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]` unit intensity, channels taken as images of one camera;
        at least 16 pixels a side.
      step: distance of two grey levels, above 0.
      seed: of the choice of patches and of held-out images.

    Returns:
      the estimate. Levels of correlated noise are corrected for what neighbours share, roughly:
      `refit` is for those.
    """
    rng = np.random.default_rng(seed)
    images = _grey(images)
    images = images[rng.permutation(len(images))[: max(1, _PIXELS // images[0].size)]]
    patches = flat_patches.find(images, step, rng)
    curve = flat_patches.variance_curve(patches)
    residuals = background_residuals(images)
    quiet = not np.isfinite(residuals).any() or np.nanstd(residuals) < step / 2
    if curve.variance.max() < step**2 / 4 and quiet:
        background = float(curve.mean[curve.patches.argmax()])
        return Estimate(Camera.create(step=step), "none", background, curve)
    kernel = correlation_kernel(residuals, step=step)
    white = kernel.shape == (1, 1)
    comb = photon_comb.find(images, step) if white else None
    kind, fit = noise_mixture.choose_and_fit(patches, step, comb)
    camera = Camera.create(**fit.level, step=step, kernel=kernel)
    if not white:
        camera = _amplified(camera, 1 / max(1 - shared_variance(residuals), 0.1))
    return Estimate(camera, kind, noise_mixture.background(fit), curve)


def refit(
    images: np.ndarray,
    mean: np.ndarray,
    camera: Camera,
    kind: str,
    *,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Camera, float]:
    """Maximum likelihood of the levels and of the background, given each frame's noiseless image.

    Args:
      images: unit intensity, any shape.
      mean: noiseless intensity, of the same shape.
      camera: where to start; its dark, step and kernel are kept.
      kind: one of `KINDS`: which levels are fitted, the others becoming 0.
      mask: of the same shape, True for pixels that count; all if None.
      seed: of the choice of pixels, if there are more than 4 million.

    Returns:
      the camera, and what is to be added to `mean`. White Poisson noise of several grey levels a
      photon is fitted by its exact likelihood, `dark` included; other noise by the censored normal
      one.

    Raises:
      UserError: for an unknown kind.
    """
    choose("noise kind", kind, KINDS)
    require_shape("mean", np.asarray(mean), np.shape(images))
    used = np.flatnonzero(np.ones(np.shape(images), bool) if mask is None else mask)
    used = np.random.default_rng(seed).permutation(used)[:_SAMPLE]
    image, mean = np.ravel(images)[used], np.ravel(mean)[used]
    if kind == "poisson" and camera.kernel.shape == (1, 1):
        step = float(camera.step)
        comb = photon_comb.find(image, step)
        if comb is not None:
            offset = photon_comb.mean_offset(comb, image, mean, step)
            return Camera.create(**comb._asdict(), step=step), offset
    return noise_levels.fit(image, mean, camera, kind)


def telling(
    images: np.ndarray, mean: np.ndarray, camera: Camera, kind: str, *, empty: np.ndarray, seed: int
) -> np.ndarray | None:
    """The pixels whose noise tells its level, as a mask for `refit`; None for all.

    On structures motions have followed the noise a little, so it would seem too weak there: the
    background tells, unless the kind has two levels, or the background so little light that it
    has no noise either. Then it is the flat pixels, as many of each brightness as there are.

    Args:
      images: `[N, H, W]` unit intensity, with noise.
      mean: noiseless intensity, of the same shape.
      camera: where to start.
      kind: one of `KINDS`.
      empty: of the same shape, True on the background.
      seed: of the choice of pixels.
    """
    if kind == "poisson_gaussian":
        return None
    if kind not in ("poisson", "speckle") or not empty.any():
        return empty
    flat = np.zeros(mean.shape, bool)
    flat.flat[flat_patches.flat_pixels(mean, None, np.random.default_rng(seed))[0]] = True
    found, offset = refit(images, mean, camera, kind, mask=flat, seed=seed)
    background = jnp.float32(np.median(mean[empty]) + offset)
    return empty if variance(found, background) > camera.step**2 else flat


def refit_correlated(
    images: np.ndarray,
    mean: np.ndarray,
    camera: Camera,
    *,
    mask: np.ndarray,
    seed: int = 0,
) -> tuple[Camera, float]:
    """Levels of correlated noise, and its correlation on structures, given nearly noiseless images.

    On the background by maximum likelihood. On structures compression leaves other noise, finer and
    stronger: its variance above the background's grows with the brightness around, as shot noise
    and as speckle, and the kernel is that of what is left there. What no motion explains is among
    it.

    Args:
      images: `[N, H, W]` unit intensity, with noise.
      mean: noiseless intensity, of the same shape.
      camera: where to start; its step is kept, and its kernel if there is hardly any structure.
      mask: of the same shape, True on the background.
      seed: of the choice of pixels.

    Returns:
      the camera, whose `dark` is the background, and what is to be added to `mean`.
    """
    require_shape("images", images, (None, None, None))
    require_shape("mean", mean, images.shape)
    still, offset = refit(images, mean, camera, "gaussian", mask=mask, seed=seed)
    dark = float(np.median(mean[mask])) + offset
    around = surroundings(jnp.asarray(mean)[..., None])[..., 0]
    light, left = np.asarray(around) + offset - dark, images - mean - offset
    on = ~mask & (images > 0) & (images < 1) & (light > float(camera.step))
    if on.sum() < _LEVELS * flat_patches.FEWEST:  # so one level has enough of them
        return still._replace(dark=jnp.asarray(dark, jnp.float32)), offset
    limits = np.geomspace(light[on].min(), light[on].max(), _LEVELS + 1)
    group = np.digitize(light[on], limits[1:-1])
    groups = [group == k for k in range(_LEVELS) if np.sum(group == k) >= flat_patches.FEWEST]
    middle = np.array([light[on][g].mean() for g in groups])
    power = np.array([np.square(left[on][g]).mean() for g in groups])
    excess = np.maximum(power - float(still.read) ** 2 - float(camera.step) ** 2 / 12, 0)
    weight = 1 / np.sqrt(power + 1e-12)  # between relative errors and energy
    columns = np.stack([middle, middle**2], 1) * weight[:, None]
    gain, speckle = optimize.nnls(columns, excess * weight)[0]
    levels = {"dark": dark, "gain": gain, "speckle": np.sqrt(speckle)}
    found = still._replace(**{k: jnp.asarray(v, jnp.float32) for k, v in levels.items()})
    kernel = correlation_kernel(np.where(on, left, np.nan))
    return found._replace(kernel=jnp.asarray(kernel)), offset


def recorded_backgrounds(
    images: np.ndarray, mean: np.ndarray, camera: Camera, *, mask: np.ndarray, seed: int = 0
) -> np.ndarray:
    """What frames, from beginning to end, add to an empty background.

    What a structure hides of one comes from others; what all hide, from places beside it, whole
    blocks of compression away, so that seams of blocks stay where they are; what is still missing,
    from the camera's read noise.

    Args:
      images: `[N, H, W]` unit intensity.
      mean: noiseless intensity, of the same shape.
      camera: of the read noise.
      mask: of the same shape, True on the background.
      seed: of the noise and of the order of the others.

    Returns:
      `[K, H, W]`, K at most 64.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, _BANK).astype(int))
    margin = max(1, round(_MARGIN * images.shape[2]))
    reach = np.ones((1, 2 * margin + 1, 2 * margin + 1), bool)
    empty = ~ndimage.binary_dilation(~mask[chosen], reach)
    seen = np.where(empty, images[chosen] - mean[chosen], np.nan)
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    out: np.ndarray = np.array(camera.read * coloured(key, (*seen.shape, 1), camera.kernel)[..., 0])
    height, width = seen.shape[1:]
    around = np.pad(seen, ((0, 0), (height, height), (width, width)), constant_values=np.nan)
    for k, field in enumerate(out):
        missing = np.ones(field.shape, bool)
        for down, across in _places_beside(height, width):
            beside = np.s_[height - down : 2 * height - down, width - across : 2 * width - across]
            others = rng.permutation(len(seen))
            for other in [k, *others] if not (down or across) else others[:_LENDERS]:
                lent = around[other][beside]
                np.copyto(field, lent, where=missing & np.isfinite(lent))
                missing &= np.isnan(lent)
            if not missing.any():
                break
    return out


def _places_beside(height: int, width: int) -> list[tuple[int, int]]:
    """Shifts by whole blocks of compression, the nearest first; (0, 0) is the first of them."""
    rows, columns = (np.arange(-(n // _BLOCK), n // _BLOCK + 1) * _BLOCK for n in (height, width))
    every = [(int(down), int(across)) for down in rows for across in columns]
    return sorted(every, key=lambda shift: float(np.hypot(*shift)))


def choose_kind(
    images: np.ndarray,
    mean: np.ndarray,
    camera: Camera,
    *,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> str:
    """The simplest kind whose likelihood on held-out images no other beats clearly.

    `estimate` misses weak mixtures of shot and read noise; with the means known they show. Only
    pixels where the mean is flat have a say, so that motions slightly off are not taken for noise.

    Args:
      images: `[N, H, W]` unit intensity, with noise.
      mean: noiseless intensity, of the same shape. Errors proportional to it seem noise that is:
        they must be weaker than the noise.
      camera: where to start; its dark and step are kept.
      mask: of the same shape, True for pixels that count; all if None.
      seed: of the choice of pixels and of held-out images.

    Returns:
      one of `KINDS`; "none" if images and means differ by less than rounding.
    """
    require_shape("images", images, (None, None, None))
    require_shape("mean", mean, images.shape)
    rng = np.random.default_rng(seed)
    half = flat_patches.held_out_half(images.shape, rng)
    used, brightness = flat_patches.flat_pixels(mean, mask, rng)
    image, mean, held_out = images.flat[used], mean.flat[used], half.flat[used]
    if np.std(image - mean) < float(camera.step) / 2:
        return "none"
    likelihood = {}
    for kind in _CANDIDATES:
        fitted = noise_levels.fit(image[~held_out], mean[~held_out], camera, kind)
        likelihood[kind] = noise_levels.log_likelihood(image[held_out], mean[held_out], *fitted)
    return noise_mixture.simplest(likelihood, brightness[held_out])


def _grey(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float64)
    if images.ndim == 4:
        images = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])
    require_shape("images", images, (None, None, None))
    return images


def _amplified(camera: Camera, factor: float) -> Camera:
    """The camera with `factor` times the variance."""
    return camera._replace(
        gain=camera.gain * factor,
        read=camera.read * factor**0.5,
        speckle=camera.speckle * factor**0.5,
    )
