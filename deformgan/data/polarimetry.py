"""Three-dimensional polarised light imaging (3D-PLI): light through fibres, and its analysis.

A section lies between a polariser and a circular analyser that turn together by the angle rho;
the light that comes through tells the direction of its birefringent fibres. The model is the
macroscopic one, fibres as uniaxial retarders along their axis. Directions are in radians,
counter-clockwise from the +column axis as seen on screen, in [0, pi); inclinations in
[-pi/2, pi/2] out of the plane.

Sources:
  Axer et al. 2011, A novel approach to the human connectome, NeuroImage 54:1091: intensity,
    retardation, Fourier analysis, inclination.
  Menzel et al. 2015, A Jones matrix formalism for simulating three-dimensional polarized light
    imaging of brain tissue, J. R. Soc. Interface 12:20150734: the same from Jones matrices.
  Dohmen et al. 2015, Understanding fiber mixture by simulation in 3D polarized light imaging,
    NeuroImage 111:464: several fibres in a pixel.
  Menzel et al. 2020, Toward a high-resolution reconstruction of 3D nerve fiber architectures,
    Phys. Rev. X 10:021002: steep fibres let less than half the light of flat ones through.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ANGLES = np.deg2rad(np.arange(0, 180, 10))  # rho: half a turn in 18 equal steps
THICKNESS = 60e-6  # of a section, metres
WAVELENGTH = 525e-9  # of the light, metres
BIREFRINGENCE = 1.75e-3  # of dense fibres: flat ones then retard sin(0.4 pi) = 0.95
ATTENUATION = 1.1  # of a section full of flat fibres: a transmittance of 0.33
STEEPENING = 1.0  # more attenuation of upright fibres, as a share: a transmittance of 0.11


class Signal(NamedTuple):
    """What a polarimeter measures, each `[..., H, W]`.

    Attributes:
      transmittance: share of the light that passes, 1 without a section.
      retardation: |sin(phase shift)|, in [0, 1] but for noise.
      direction: of the fibres, in [0, pi).
    """

    transmittance: np.ndarray
    retardation: np.ndarray
    direction: np.ndarray


def relative_thickness(
    thickness: float = THICKNESS,
    birefringence: float = BIREFRINGENCE,
    wavelength: float = WAVELENGTH,
) -> float:
    """4 d Δn / λ: the thickness of a section in quarter waves; unambiguous up to 1."""
    return 4 * thickness * birefringence / wavelength


def retardance(
    density: np.ndarray, direction: np.ndarray, inclination: np.ndarray, relative: float
) -> np.ndarray:
    """The phase shift δ and the direction φ of a mixture of fibres, as δ exp(2iφ).

    One population of density 1 gives δ = π/2 · 4 d Δn/λ · cos²α (Axer et al. 2011; Menzel et al.
    2015). Several add as vectors of twice their directions, to first order in δ: crossing fibres
    cancel, as Dohmen et al. 2015 find.

    Args:
      density: `[K, ..., H, W]` of K populations of fibres, 1 where they fill the section.
      direction: of their axes, the same shape.
      inclination: of their axes, the same shape.
      relative: `relative_thickness` of the section.

    Returns:
      `[..., H, W]` complex.
    """
    amount = density * np.square(np.cos(inclination))
    twice = 2 * direction
    real, imaginary = (amount * np.cos(twice)).sum(0), (amount * np.sin(twice)).sum(0)
    return np.pi / 2 * relative * (real + 1j * imaginary)


def transmittance(
    density: np.ndarray, inclination: np.ndarray, ground: np.ndarray | float
) -> np.ndarray:
    """Beer-Lambert: exp(-Σ density · attenuation · (1 + s sin²α) - ground), `[..., H, W]`.

    The attenuation, `ATTENUATION` for flat fibres, grows with their inclination: scattered light
    leaves the aperture (Menzel et al. 2020 measured it; the sine is the form chosen here).

    Args:
      density: `[K, ..., H, W]` of K populations of fibres.
      inclination: of their axes, the same shape.
      ground: attenuation by everything else, `[..., H, W]`.
    """
    steepness = 1 + STEEPENING * np.square(np.sin(inclination))
    return np.exp(-ATTENUATION * (density * steepness).sum(0) - ground)


def intensities(transmitted: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What the camera sees at each of `ANGLES`: I(ρ) = T/2 · (1 + sin δ · sin(2ρ - 2φ)).

    Args:
      transmitted: transmittance `[..., H, W]`.
      shift: `retardance`, the same shape.

    Returns:
      `[18, ..., H, W]`, 1/2 without a section. Axer et al. 2011; Menzel et al. 2015.
    """
    delta = np.abs(shift)
    scale = np.sinc(delta / np.pi) * transmitted / 2  # sin δ / δ · T/2
    cosine, sine = scale * shift.real, scale * shift.imag  # T/2 sin δ cos 2φ, ... sin 2φ
    turned = (2 * ANGLES).astype(delta.dtype).reshape(-1, *(1,) * delta.ndim)
    return transmitted / 2 + np.sin(turned) * cosine - np.cos(turned) * sine


def photograph(rng: np.random.Generator, light: np.ndarray, photons: float) -> np.ndarray:
    """Shot noise: counts of variance equal to their mean, in the normal approximation.

    Args:
      rng: of the noise.
      light: intensities, any shape.
      photons: counted where the intensity is 1, some hundreds or more.
    """
    out = rng.standard_normal(light.shape, np.float32)
    out *= np.sqrt(light / photons)
    out += light
    return np.maximum(out, 0, out=out)


def analyse(light: np.ndarray) -> Signal:
    """The Fourier analysis of a polarimeter: from intensities `[18, ..., H, W]` to a `Signal`.

    With a0 the mean and a2, b2 the coefficients of cos 2ρ and sin 2ρ: T = 2 a0,
    r = sqrt(a2² + b2²) / a0, φ = atan2(-a2, b2) / 2 (Axer et al. 2011; fastpli's `epa`).
    The retardation of a pixel without any light is 0.
    """
    a0 = light.mean(0)
    turned = (2 * ANGLES).astype(light.dtype)
    a2, b2 = (np.tensordot(f(turned), light, 1) * 2 / len(ANGLES) for f in (np.cos, np.sin))
    amplitude = np.hypot(a2, b2)
    ratio = np.divide(amplitude, a0, out=np.zeros_like(amplitude), where=a0 > 0)
    # Half of an angle just below 0 may round to pi, which is 0.
    direction = np.arctan2(-a2, b2) / 2 % np.pi
    return Signal(2 * a0, ratio, np.where(direction < np.pi, direction, 0))


def inclination(retardation: np.ndarray, relative: float) -> np.ndarray:
    """The inclination that a retardation tells, in [0, pi/2]; its sign is not measured.

    α = arccos sqrt(arcsin r / (π/2 · 4 d Δn/λ)) (Axer et al. 2011): right for one dense population.
    Thin or crossing fibres look steep; a retardation above that of flat fibres gives 0.
    """
    phase = np.arcsin(np.clip(retardation, 0, 1)) / (np.pi / 2 * relative)
    return np.arccos(np.sqrt(np.clip(phase, 0, 1)))
