"""The detector of the FID with random weights: what is tested is how it is read and fed, not what it sees."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics
from hkdpipe.trainer.metrics.inception import VARIABLE, Inception, inception_file, load_inception


def images(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def inception(inception_weights: Path) -> Inception:
    return load_inception(inception_weights, torch.device("cpu"))


def by_torch_fidelity(inception_weights: Path, batch: Tensor) -> tuple[Tensor, Tensor]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception_weights),
    )
    features, logits = network(batch)
    return features, logits


def test_features_are_torch_fidelitys(inception_weights: Path, inception: Inception) -> None:
    features, logits = inception(images(4, 32))
    expected = by_torch_fidelity(inception_weights, images(4, 32))
    assert features.shape == (4, 2048)
    assert logits.shape == (4, 1008)
    assert features.std(dim=0).mean() > 0.01  # they tell images apart
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)


def test_features_are_pytorch_fids_where_neither_resizes(
    inception_weights: Path, inception: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two resize and scale in ways of their own; of 299 x 299 pixels scaled alike they see the same."""
    import pytorch_fid.inception as pytorch_fid

    state = torch.load(inception_weights, weights_only=True)
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = pytorch_fid.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    batch = images(2, 299)
    expected = network((batch.float() - 128) / 128)[0].flatten(1)
    torch.testing.assert_close(inception(batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_grey_images_are_repeated_to_three_channels(inception: Inception) -> None:
    grey = images(2, 16, channels=1)
    assert torch.equal(inception(grey)[0], inception(grey.repeat(1, 3, 1, 1))[0])


def test_fid_is_torch_fidelitys(inception: Inception) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    # A quarter of the features: torch-fidelity's eigenvalues of all take a minute.
    parts = [inception(images(12, 32, seed=seed) // (seed + 1))[0][:, ::4].double() for seed in range(2)]
    one, other = (fid_features_to_statistics(part) for part in parts)
    expected = fid_statistics_to_metric(one, other, verbose=False)["frechet_inception_distance"]
    found = frechet_distance(*(statistics([part.numpy()]) for part in parts))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found > 1


def test_weights_are_read_without_executing_anything(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    for content in (pickle.dumps(Evil()), _saved({"Conv2d_1a_3x3.conv.weight": Evil()}), b"", b"hello"):
        (tmp_path / "evil.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"evil\.pth: not the weights of Inception-v3"):
            load_inception(tmp_path / "evil.pth", torch.device("cpu"))
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused(inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    removed = state.pop("fc.weight")
    torch.save(state, tmp_path / "less.pth")
    torch.save({**state, "fc.weight": removed.T.contiguous()}, tmp_path / "turned.pth")
    torch.save([removed], tmp_path / "list.pth")
    for name in ("less", "turned", "list"):
        with pytest.raises(InputError, match="not the weights of Inception-v3"):
            load_inception(tmp_path / f"{name}.pth", torch.device("cpu"))


def test_a_missing_file_is_named_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth: No such file.*weights-inception-2015-12-05"):
        load_inception(tmp_path / "nowhere.pth", torch.device("cpu"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match=r"inception: not set.*weights-inception-2015-12-05"):
        inception_file("")
    monkeypatch.setenv(VARIABLE, "/some/where.pth")
    assert inception_file("") == Path("/some/where.pth")
    assert inception_file("named.pth") == Path("named.pth")


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
