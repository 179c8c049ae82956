"""The README of an export: what the model is, where it comes from, how to use it.

It begins with the front matter that huggingface_hub reads; the names of the files are the hub's own already.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hkdpipe.trainer.settings.method_registry import methods

HUB_LICENCES = frozenset(
    ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "openrail")
) | {
    f"cc-{terms}-{version}"
    for terms in ("by", "by-sa", "by-nc", "by-nc-sa", "by-nc-nd")
    for version in ("2.0", "3.0", "4.0")
}
"""Names that the hub knows, of those that models and data sets of images come under."""
Rows = Sequence[Mapping[str, Any]]


def model_card(
    model: Mapping[str, Any],
    about: Mapping[str, Any],
    metric: str,
    sentences: Sequence[str],
    command: str = "",
) -> str:
    """A page of Markdown from the export's configuration `model` and facts `about`.

    `metric` names the Frechet distance in about["metrics"], `sentences` say what else was measured; `command`
    samples from THIS_FOLDER in a shell. Times are left out: they are the machine's, not the model's.
    """
    arch, teacher = model["architecture"], about["teacher"]
    shape = f"{arch['img_channels']}x{arch['img_resolution']}x{arch['img_resolution']}"
    licence_text = _line(teacher["licence"])
    licence = licence_text or "not stated"
    origin = "began as the teacher's and are derived from them"
    if not methods()[model["method"]].starts_from_teacher:
        origin = "were trained on its samples"
    name = about["weights"]
    weights = "of the last step" if name == "raw" else f"average over the training ({name.upper()})"
    noise, told = "torch.randn(16, *model.image_shape)", ""
    if classes := arch.get("label_dim"):
        noise, told = f"{noise}, one_hot", f"one_hot = torch.eye({classes})[[{min(about['classes'])}] * 16]\n"
    shell = f"```\n{command}\n```\n\n" if command else ""
    return f"""---
library_name: hkdpipe
pipeline_tag: unconditional-image-generation
{_licence_fields(licence_text)}
tags:
- diffusion
- distillation
- one-step-generation
- {model["method"]}
---

# One-step generator of {shape} images

Made by hkdpipe: a student (method `{model["method"]}`) that makes in one network evaluation what its teacher,
an EDM diffusion model, makes in many.

- Teacher: `{_line(teacher["source"])}`, SHA-256 `{teacher["sha256"]}`
- Licence of the teacher: {licence}. The weights here {origin}: see what its licence says of that before you
  use or pass on either.
- Trajectories of the teacher seen: {about["checkpoint"]["seen"]:,}
- Weights: {weights}

## Sampling

{shell}```python
import hkdpipe
import torch

model = hkdpipe.load_model("THIS_FOLDER")
{told}images = model.sample({noise})  # in [-1, 1]
```

## Measurements

{_measurements(about["metrics"], metric, sentences)}
"""


def _licence_fields(text: str) -> str:
    """What the hub asks for in a front matter: one of its names of licences, or 'other' and which."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if not name:
        return "license: unknown"
    return f"license: {name}" if name in HUB_LICENCES else f"license: other\nlicense_name: {json.dumps(name)}"


def _measurements(rows: Rows, metric: str, sentences: Sequence[str]) -> str:
    parts = []
    if rows:
        lines = [f"| | network evaluations | images | {metric} |", "| --- | --- | --- | --- |"]
        for row in rows:
            nfe = row["nfe"] or "-"
            distance = f"{row[metric]:.2f}" if metric in row else "-"
            lines.append(f"| {row['name']} | {nfe} | {row['samples']:,} | {distance} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *sentences]) or "None."


def _line(text: Any) -> str:
    return " ".join(str(text).split())
