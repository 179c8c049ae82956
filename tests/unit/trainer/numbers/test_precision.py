import pytest
import torch

from hkdpipe.trainer.numbers.precision import exact, tf32


def test_exact_is_single_precision_or_better() -> None:
    for given, expected in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        assert exact(torch.ones(1, dtype=given)).dtype == expected


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_told_and_then_as_before(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (torch.backends.cudnn, torch.backends.cuda.matmul)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = [kind.allow_tf32 for kind in kinds]
    with tf32(allowed):
        assert [kind.allow_tf32 for kind in kinds] == [allowed, allowed]
    assert [kind.allow_tf32 for kind in kinds] == before == [True, False]
