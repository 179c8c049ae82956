"""What a classifier that knows the images' classes says of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hkdpipe.stages.settings.metrics import Column, Metric, Row, register

if TYPE_CHECKING:
    from hkdpipe.stages.evaluation.seen import Seen


def _measure(seen: Seen) -> Row:
    import numpy as np

    likely = seen.likely
    shares = np.bincount(likely.argmax(axis=1), minlength=likely.shape[1]) / len(likely)
    row: Row = {"confident": float((likely.max(axis=1) > 0.9).mean()), "class_shares": shares.tolist()}
    if seen.judged is not None and seen.asked is not None and seen.target.images:
        row["as_asked"] = float((seen.judged == seen.asked).mean())
    return row


register(
    Metric(
        "judgement",
        "shares of samples of which a classifier is sure, and in which it sees the class asked for",
        needs=("class logits",),
        columns=(
            Column("confident", "p > 0.9", "{:.1f}", "%", "higher", ("table", "summary")),
            Column("class_shares", type=list),
            Column("as_asked", "as asked", "{:.1f}", "%", "higher", ("table", "summary", "worst class")),
        ),
        row=_measure,
        text="p > 0.9: the share of samples in which the classifier sees one class with such a probability.",
        chosen=False,
    )
)
