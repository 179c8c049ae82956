"""Whether an archive fits its disk, known before the first trajectory."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from hkdpipe.manifests.ground.errors import HkdpipeError, Name
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Reporter


def check_storage(root: Path, plan: Plan, missing: Sequence[int], reporter: Reporter) -> None:
    """Report what states the missing shards of the archive in the folder `root` take, and how much space is
    free; a shard's frame (checksums, index or tar headers) comes on top. HkdpipeError if the space does not
    suffice; how far a codec will compress them cannot be known."""
    if not missing:
        return
    need, product = needed(plan, missing)
    free, path = shutil.disk_usage(root).free, root.resolve()
    place = next(folder for folder in (path, *path.parents) if folder.is_mount())
    if need > free and plan.codec == "none":
        count, states = (Name(key, GenerationSettings) for key in ("count", "store_steps"))
        full = f"{root}: {product} are to be stored, {in_bytes(free)} are free on {place}; take a smaller "
        raise HkdpipeError(full, count, ", fewer ", states, ", or another folder")
    reporter.line(f"storage: {product}; {in_bytes(free)} free on {place}")


def needed(plan: Plan, missing: Sequence[int]) -> tuple[int, str]:
    """The bytes of the missing shards' states, and how they come about."""
    trajectories = sum(stop - start for start, stop in map(plan.shard_range, missing))
    need = trajectories * plan.trajectory_bytes
    return need, (
        f"{trajectories:,} trajectories x {len(plan.sigmas)} states x {in_bytes(plan.state_bytes)} "
        f"= {in_bytes(need)}" + (" before compression" if plan.codec != "none" else "")
    )


def in_bytes(number: int) -> str:
    """128 B, 6.1 kB, 116.7 GB: in powers of 1000."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
