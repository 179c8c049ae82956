"""Hashes of what the demo computes: `python tests/benchmarks/golden_hashes.py [METHOD ...]` (all methods).

The archive's, and of each method the trained weights' (raw and averaged), by one process and by two. A change
that leaves the numerics alone leaves every line as it was on the same machine: compare with what the commit
before prints. Takes about an hour on two cores; a method alone a third of it.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hkdpipe.manifests.ground.sections import choices_of
from hkdpipe.trainer.settings.training_settings import TrainingSettings

BIN = Path(sys.executable).parent
HKDPIPE = [str(BIN / "hkdpipe")]
TWO = [str(BIN / "torchrun"), "--no-python", "--nproc-per-node", "2", *HKDPIPE]
BUDGETS = {1: 128_000, 2: 16_000}
"""Trajectories seen, by the number of processes."""


def call(command: list[str], *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *arguments, "--preset", "digits", "--quiet"], check=True, env=environment)


def main(methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "archive"
        call(HKDPIPE, "generate-trajectories", "--out", str(archive))
        shards = [shard["sha256"] for shard in json.loads((archive / "manifest.json").read_text())["shards"]]
        print("archive", hashlib.sha256(json.dumps(shards).encode()).hexdigest(), flush=True)
        for method in methods:
            for processes, budget in BUDGETS.items():
                out = Path(temporary) / f"{method}-{processes}"
                given = ["--archive", str(archive), "--out", str(out), "--method", method]
                given += ["--set", f"training.budget={budget}"]
                call(TWO if processes == 2 else HKDPIPE, "train", *given)
                newest = max((out / "checkpoints").glob("step-*"))
                files = [newest / name for name in ("weights.safetensors", "ema.safetensors")]
                weights = b"".join(file.read_bytes() for file in files)
                print(method, processes, hashlib.sha256(weights).hexdigest(), flush=True)


if __name__ == "__main__":
    key = next(key for key in dataclasses.fields(TrainingSettings) if key.name == "method")
    main(sys.argv[1:] or list(choices_of(key.metadata) or ()))
