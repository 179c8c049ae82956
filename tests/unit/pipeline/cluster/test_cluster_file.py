from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.pipeline.cluster.cluster_file import Cluster, read_cluster
from hkdpipe.pipeline.explain import explain_cluster


def test_what_the_help_shows_is_a_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(explain_cluster())
    assert read_cluster(path) == Cluster()
    path.write_text(explain_cluster().replace('partition = ""', 'partition = "gpu"'))
    assert read_cluster(path).cluster.partition == "gpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cluster]\npartiton = 'gpu'", "cluster.partiton: unknown key; did you mean 'partition'?"),
        ("[traning]\ngpus = 1", "traning: unknown section; did you mean 'training'?"),
        ("training = 1", "training: got a value; accepted: a section, [training]"),
        ("[training]\nnodes = 0", "training.nodes: got 0; accepted: an integer, at least 1"),
        (
            "[training]\nlauncher = 'mpirun'",
            'training.launcher: got "mpirun"; accepted: one of "srun", "torchrun"',
        ),
        ('[cluster]\nextra = ["a\\nb"]', "cluster.extra: got a line break; accepted: one line"),
        ('[training]\ntime = "1\\n"', "training.time: got a line break; accepted: one line"),
    ],
)
def test_refusals_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_cluster(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_cluster(tmp_path / "none.toml")


def test_options_win_over_the_file() -> None:
    cluster = Cluster().changed("64%16", "2:00:00", 4)
    assert (cluster.generation.tasks, cluster.generation.limit) == (64, 16)
    assert cluster.training.nodes == 4
    assert {cluster.generation.time, cluster.training.time, cluster.evaluation.time} == {"2:00:00"}
    assert cluster.changed("8", None, None).generation.limit == 0


@pytest.mark.parametrize("array", ["", "0", "0-7", "8%", "8%0", "8,9"])
def test_arrays_are_a_number_and_a_limit(array: str) -> None:
    with pytest.raises(UsageError, match=r"--array: got '.*'; accepted: tasks, or tasks%limit, as in 64%16"):
        Cluster().changed(array, None, None)
