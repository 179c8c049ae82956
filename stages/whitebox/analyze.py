"""What a student's Koopman operators are and do: spectra, bands, pictures, and analysis.json to show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hkdpipe.manifests.ground.atomic_files import make_folders, read_json_if_there, write_atomic, write_json
from hkdpipe.stages.reports.report import REPORT, write_report
from hkdpipe.stages.sampling.students import load_hkd, sampling_labels, sampling_noise, trained_classes
from hkdpipe.stages.shared.picture_grids import save_png, strip
from hkdpipe.stages.shared.reporting import Reporter, Summary, heed
from hkdpipe.stages.shared.tables import Row, write_table
from hkdpipe.stages.whitebox import band_measurements, plots
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.students.loading import saved_model
from hkdpipe.trainer.teachers.sampler import sigma_schedule
from hkdpipe.trainer.whitebox.bands import Band, band_masks, band_members, masked, operator_levels
from hkdpipe.trainer.whitebox.cumulative_effect import mean_frequency, radial_power
from hkdpipe.trainer.whitebox.spectrum import level_spectra, whole_evolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED = 10  # images in a row
TIMES = 9
CLASSES = 10  # that are compared, at most
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
Section = dict[str, Any]
"""A part of analysis.json: its `title`, `text`, `pictures` and `tables`."""


@dataclass(frozen=True)
class _Analysis:
    """What the sections share."""

    model: HKD
    out: Path
    bands: Sequence[Band]
    parts: Sequence[band_measurements.Generated]
    files: list[Path]

    @property
    def images(self) -> Tensor:
        return torch.cat([part.images for part in self.parts])

    def plot(self, name: str, figure: Figure, alt: str, forms: Sequence[str] = ("png",)) -> dict[str, str]:
        for form in forms:
            path = self.out / f"{name}.{form}"
            write_atomic(path, plots.figure_bytes(figure, form))
            self.files.append(path)
        return {"file": f"{name}.png", "alt": alt}

    def picture(self, name: str, picture: Image.Image, alt: str) -> dict[str, str]:
        save_png(self.out / f"{name}.png", picture)
        self.files.append(self.out / f"{name}.png")
        return {"file": f"{name}.png", "alt": alt}

    def table(self, name: str, title: str, rows: Sequence[Row]) -> dict[str, str]:
        write_table(self.out / f"{name}.csv", rows, ".5g")
        self.files.append(self.out / f"{name}.csv")
        return {"title": title, "file": f"{name}.csv"}


def analyze(
    model: Path,
    out: Path,
    count: int,
    seed: int,
    bands: Sequence[Band],
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write pictures, tables and analysis.json in `out`, from `count` images, those of `sample` with `seed`.

    `model` is an export or a checkpoint of hkd. The bands are taken of all levels, and of each alone.
    """
    plots.check_plots()
    student = load_hkd(model, device)
    levels = operator_levels(student)
    for band in bands:
        # Refuses now what is too narrow, rather than when half is written.
        band_members(student, band)
    classes = trained_classes(model, student.arch.label_dim)
    noise = sampling_noise(student, seed, range(count))
    labels = sampling_labels(student, seed, range(count), classes)
    make_folders(out)
    sections = []
    with reporter.phase("analysis", 5, "sections") as advance, torch.inference_mode():
        parts = []
        for part in band_measurements.generated(student, noise, labels):
            parts.append(part)
            heed(stop, "the analysis begins anew")
        analysis = _Analysis(student, out, bands, parts, [])
        sections.append(_spectrum(analysis))
        advance(1)
        divided = [None, *levels] if len(levels) > 1 else [None]
        effects = []
        for level in divided:
            for band in bands:
                effects.append(band_measurements.band_effect(student, parts, band, level))
                heed(stop, "the analysis begins anew")
        sections.append(_masking(analysis, effects))
        advance(2)
        sections.append(_frequencies(analysis, effects))
        advance(3)
        sections.append(_cumulative(analysis))
        advance(4)
        if classes:
            sections.append(_by_class(analysis, classes[:CLASSES], noise))
        advance(5)
    write_json(
        out / "analysis.json",
        {
            "title": f"The operators of {model}",
            "weights": saved_model(model, "ema").sha256,
            "sections": sections,
        },
    )
    whole = effects[: len(bands)]
    return Summary(
        title=f"analysis of {model}, {count} images",
        header=("band of α", "share of |z|²", "MSE without it", "its mean frequency", "low share"),
        rows=tuple(
            (
                str(e.band),
                f"{e.share:.1%}",
                f"{e.without:.4f}",
                f"{e.frequency:.2f} cycles an image",
                f"{e.low:.1%}",
            )
            for e in whole
        ),
        files=(*analysis.files, out / "analysis.json"),
        data={"analysis": str(out / "analysis.json"), "bands": [_row(effect) for effect in whole]},
    )


def shown_in_report(summary: Summary, evaluation: Path) -> Summary:
    """Once the report in the folder of an evaluation, if that was done, shows the analysis beside it, too."""
    metrics = read_json_if_there(evaluation / "metrics.json")
    if metrics is None:
        return summary
    write_report(evaluation, metrics)
    return replace(summary, files=(*summary.files, evaluation / REPORT))


def _spectrum(analysis: _Analysis) -> Section:
    student = analysis.model
    spectra, dt = level_spectra(student), whole_evolution(student)
    rows: list[Row] = []
    for level, spectrum in spectra.items():
        modulus = spectrum.propagator(dt).abs()
        for name, part in (("alpha", spectrum.alpha), ("beta", spectrum.beta), ("modulus", modulus)):
            quantiles = np.quantile(part.numpy(), QUANTILES)
            named = {f"q{of:g}": float(value) for of, value in zip(QUANTILES, quantiles, strict=True)}
            rows.append({"level": level, "of": name, "pairs": spectrum.alpha.numel(), **named})
    changes = []
    for level in spectra:
        numbers = [number for number, shape in enumerate(student.shapes) if shape[1] == level]
        both = [(part.start[number], part.end[number]) for part in analysis.parts for number in numbers]
        moved = sum(float((end - start).double().square().sum()) for start, end in both)
        whole = sum(float(start.double().square().sum()) for start, _ in both)
        changes.append(f"{(moved / whole) ** 0.5:.1%} of their norm at {level}×{level}")
    text = (
        "Every pair of channels at every location has the eigenvalues α ± iβ. From the start of a trajectory "
        f"to its end the time of the evolution runs by {dt:.3g}, so that the propagator's eigenvalues are "
        f"exp({dt:.3g} (α ± iβ)): positive α shrink a pair, negative ones let it grow, and β turns it. An "
        f"operator that does nothing has them all at 1. Here the evolution moves the observables by "
        f"{', '.join(changes)}."
    )
    levels = ", ".join(f"{level}×{level}" for level in spectra)
    shown = f"Eigenvalues, densities of α and β, and the propagator on the complex plane, at {levels}"
    over = f"Mean |α| and |β| over the locations, at {levels}"
    pictures = [
        analysis.plot("spectrum", plots.spectrum_figure(spectra, dt), shown),
        analysis.plot("maps", plots.maps_figure(spectra), over),
    ]
    table = analysis.table("spectrum", "Quantiles by level", rows)
    return {"title": "Spectrum", "text": text, "pictures": pictures, "tables": [table]}


def _row(effect: band_measurements.BandEffect) -> Row:
    return {
        "level": effect.level or "all",
        "band": str(effect.band),
        "share_of_z": effect.share,
        "mse_alone": effect.alone,
        "mse_without": effect.without,
        "mean_frequency": effect.frequency,
        "low_share": effect.low,
    }


def _masking(analysis: _Analysis, effects: Sequence[band_measurements.BandEffect]) -> Section:
    student, part = analysis.model, analysis.parts[0]
    z = [tensor[:PICTURED] for tensor in part.end]
    labels = None if part.labels is None else part.labels[:PICTURED]
    alone = [(f"{band} alone", band) for band in analysis.bands]
    up_to = [Band(0, band.high) for band in analysis.bands if band.low > 0 and band.high < 1]
    rows = alone + [(f"smallest {band.high:.0%}", band) for band in up_to]
    pictures = []
    for level in dict.fromkeys(effect.level for effect in effects):
        where = "all levels" if level is None else f"level {level} only"
        divided = [masked(z, band_masks(student, band, level)) for _, band in rows]
        images = [part.images[:PICTURED], *(student.decode(own, labels) for own in divided)]
        captions = [f"whole; below it, bands of {where}", *(caption for caption, _ in rows)]
        numbers = [str(number) for number in range(len(images[0]))]
        sheet = strip([row.float().cpu().numpy() for row in images], captions, numbers)
        alt = f"Images decoded from bands of α, of {where}: {', '.join(caption for caption, _ in rows)}"
        pictures.append(analysis.picture("bands" if level is None else f"bands-{level}", sheet, alt))
    text = (
        "The pairs of each level are ordered by α and divided into bands. Rows named 'alone' are decoded "
        "from one band, all other pairs set to 0; 'smallest 67%' from all pairs up to that quantile. "
        "mse_alone and mse_without compare images of the band alone, and without it, with the whole ones; "
        "share_of_z is the band's part of the squared norm of what is divided."
    )
    table = analysis.table("bands", "Effect of each band", [_row(effect) for effect in effects])
    return {"title": "Spectral masking", "text": text, "pictures": pictures, "tables": [table]}


def _frequencies(analysis: _Analysis, effects: Sequence[band_measurements.BandEffect]) -> Section:
    images = analysis.images
    own = radial_power(images).mean(dim=0).cpu()
    whole = [effect for effect in effects if effect.level is None]
    axis, cycles = "cycles an image", list(range(len(own)))
    shares = {str(effect.band): (effect.power / effect.power.sum()).tolist() for effect in whole}
    ratios = {str(effect.band): (effect.power / own).tolist() for effect in whole}
    reference = {"the images": (own / own.sum()).tolist()}
    title = "what is lost without the band (share of its power)"
    panels = [
        plots.Panel(title, axis, cycles, shares, reference=reference),
        plots.Panel("power lost / the image's own", axis, cycles, ratios),
    ]
    lost = "; ".join(f"{e.band}: {e.frequency:.2f} ({e.low:.0%} low)" for e in whole)
    means = [effect.frequency for effect in whole]
    text = (
        "What an image loses without a band, by the spatial frequency of the loss (radial power spectrum of "
        "the difference). Mean frequency in cycles an image, and the share up to a quarter of the highest "
        f"frequency: {lost}; the images themselves: {mean_frequency(own):.2f} "
        f"({band_measurements.low_share(own, images.shape[-1]):.0%} low). The bands' means lie within "
        f"{max(means) - min(means):.2f} cycles."
    )
    table: list[Row] = [
        {"level": e.level or "all", "band": str(e.band), "cycles": k, "power": float(power)}
        for e in effects
        for k, power in enumerate(e.power)
    ]
    table += [{"level": "", "band": "images", "cycles": k, "power": float(p)} for k, p in enumerate(own)]
    alt = f"Power by spatial frequency. {lost}"
    return {
        "title": "Bands and spatial frequencies",
        "text": text,
        "pictures": [analysis.plot("frequencies", plots.lines_figure(panels), alt, ("png", "svg"))],
        "tables": [analysis.table("frequencies", "Power by spatial frequency", table)],
    }


def _cumulative(analysis: _Analysis) -> Section:
    student = analysis.model
    sigmas = sigma_schedule(TIMES, student.sigma_min, student.sigma_max, student.rho).tolist()[1:-1]
    effect, share = band_measurements.cumulative_shares(student, analysis.parts, analysis.bands, sigmas)
    names = [str(band) for band in analysis.bands]
    pixels = student.image_shape[0] * student.image_shape[1] * student.image_shape[2]
    rows: list[Row] = [
        {"band": name, "sigma": sigma, "mse": float(one[k]) / pixels, "share": float(part[k])}
        for name, one, part in zip(names, effect, share, strict=True)
        for k, sigma in enumerate(sigmas)
    ]
    panels = []
    for kind, values in (("share", share), ("MSE", effect / pixels)):
        lines = dict(zip(names, values.tolist(), strict=True))
        panels.append(plots.Panel(f"cumulative effect ({kind})", "σ", sigmas, lines, "log"))
    ends = "; ".join(f"{name}: {float(part[-1]):.0%}" for name, part in zip(names, share, strict=True))
    text = (
        "How much of a band's part in the image has come about by σ: the squared difference between the "
        "image with the band evolved to σ and that with the band left at the start, the rest evolved to the "
        f"end in both; as a share of the sum over the bands. Shares at the end: {ends}."
    )
    alt = f"Cumulative effect over time. {ends}"
    picture = analysis.plot("cumulative", plots.lines_figure(panels), alt, ("png", "svg"))
    table = analysis.table("cumulative", "Cumulative effect", rows)
    return {"title": "Cumulative effect", "text": text, "pictures": [picture], "tables": [table]}


def _by_class(analysis: _Analysis, classes: Sequence[int], noise: Tensor) -> Section:
    """The same noise with each class: what differs is the class alone."""
    student = analysis.model
    rows: list[Row] = []
    lines: list[dict[str, list[float]]] = [{}, {}]
    for number in classes:
        labels = one_hot(np.full(len(noise), number), student.arch.label_dim, student.device)
        parts = list(band_measurements.generated(student, noise, labels))
        for band in analysis.bands:
            effect = band_measurements.band_effect(student, parts, band, None)
            rows.append({"class": number, **_row(effect)})
            for line, value in zip(lines, (effect.share, effect.frequency), strict=True):
                line.setdefault(str(band), []).append(value)
    panels = [
        plots.Panel(title, "class", list(classes), line)
        for title, line in zip(("share of |z|²", "mean frequency lost without it"), lines, strict=True)
    ]
    text = (
        "The operators know no class, so their eigenvalues are the same for all. What differs by class is "
        "how strongly the encoder excites each band, and what the decoder makes of it: the bands' shares of "
        f"|z|² at the end and their effect on the images, for {len(classes)} classes with the same noise."
    )
    picture = analysis.plot("classes", plots.lines_figure(panels), "Bands by class", ("png", "svg"))
    table = analysis.table("classes", "Effect of each band by class", rows)
    return {"title": "Classes", "text": text, "pictures": [picture], "tables": [table]}
