"""Where each stage stands, read from what it wrote. Free of torch, so that `status` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hkdpipe.manifests.archive.contents import describe
from hkdpipe.manifests.ground.atomic_files import read_json_if_there
from hkdpipe.manifests.ground.sections import digest, of_kind
from hkdpipe.stages.settings.evaluation_settings import NEWER, EvaluationSettings
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import duration
from hkdpipe.trainer.settings.training_settings import TrainingSettings

Completeness = Literal["absent", "partial", "complete"]


@dataclass(frozen=True)
class StageState:
    name: str
    state: Completeness
    done: int
    total: int
    unit: str
    detail: str


def generation_state(archive: Path, settings: GenerationSettings) -> StageState:
    """Complete when the archive holds all the trajectories asked for."""
    archived = describe(archive)
    complete = archived["state"] == "complete" and archived["count"] >= settings.count
    state: Completeness = "complete" if complete else "partial" if archived["state"] != "absent" else "absent"
    detail = f"{archived['shards_done']} of {archived['shards']} shards, {archived['bytes'] / 1e6:,.1f} MB"
    if archived["shards_claimed"]:
        detail += f", {archived['shards_claimed']} in the making"
        if archived["per_second"]:
            left = (archived["count"] - archived["trajectories"]) / archived["per_second"]
            detail += f", {archived['per_second']:,.1f} trajectories a second, {duration(left)} left"
    said = "" if state == "absent" else detail
    return StageState("generation", state, archived["trajectories"], settings.count, "trajectories", said)


def training_state(folder: Path, settings: TrainingSettings) -> StageState:
    """Complete when the newest checkpoint has seen the budget."""
    newest = newest_state(folder / "checkpoints")
    if newest is None:
        return StageState("training", "absent", 0, settings.budget, "trajectories", "")
    path, state = newest
    complete: Completeness = "complete" if state["seen"] >= settings.budget else "partial"
    return StageState("training", complete, state["seen"], settings.budget, "trajectories", path.name)


def evaluation_state(
    folder: Path, export: Path, training_folder: Path, settings: EvaluationSettings
) -> StageState:
    """Complete when the measurements are those of these settings on the newest checkpoint."""
    rows = len(list((folder / "rows").glob("*.json")))
    total = len(settings.metrics)
    newest = newest_state(training_folder / "checkpoints")
    metrics = read_json_if_there(folder / "metrics.json")
    if metrics is None or newest is None:
        state: Completeness = "partial" if rows else "absent"
        return StageState("evaluation", state, 0, total, "metrics", f"{rows} rows measured" if rows else "")
    identity = evaluation_identity(settings, newest[1])
    current = isinstance(metrics, dict) and metrics.get("identity") == identity
    if not current or not (export / "config.json").is_file():
        older = "of other settings or an older checkpoint"
        return StageState("evaluation", "partial", 0, total, "metrics", older)
    return StageState("evaluation", "complete", total, total, "metrics", str(folder / "metrics.json"))


def newest_state(checkpoints: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose state.json can be read, without checking its weights."""
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        state = read_json_if_there(path / "state.json")
        if isinstance(state, dict) and isinstance(state.get("seen"), int):
            return path, state
    return None


def evaluation_identity(settings: EvaluationSettings, checkpoint: dict[str, Any]) -> str:
    """Digest of what is measured and on which weights."""
    values = {name: value for name, value in of_kind(settings, "identity").items() if name not in NEWER}
    values |= settings.newer()
    growing = of_kind(settings, "growing")
    return digest([values, growing, checkpoint.get("sha256"), checkpoint.get("identity")])
