import numpy as np
import pytest
import torch

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.whitebox.spectrum import level_spectra, whole_evolution


def sorted_values(values: torch.Tensor) -> torch.Tensor:
    """By real part, then by imaginary part, rounded so that rounding does not decide."""
    values = values.to(torch.complex128).flatten()
    imaginary, real = (part.mul(1e5).round().numpy() for part in (values.imag, values.real))
    return values[np.lexsort((imaginary, real))]


@pytest.mark.parametrize("sharing", ["location", "channel", "low-rank"])
@pytest.mark.parametrize("hierarchy", ["full", "bottleneck", "none"])
def test_eigenvalues_are_of_the_blocks(network: PreconditionedUNet, hierarchy: str, sharing: str) -> None:
    """torch.linalg.eigvals of [[alpha, beta], [-beta, alpha]], and of its matrix exponential."""
    model = HKD.from_teacher(
        network, HkdOptions(koopman=KoopmanSettings(hierarchy=hierarchy, sharing=sharing))
    )
    for parameter in model.requires_grad_(False).koopman.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    spectra = level_spectra(model)
    assert list(spectra) == {"full": [8, 4], "bottleneck": [4], "none": []}[hierarchy]
    for level, spectrum in spectra.items():
        blocks = []
        for name, operator in model.koopman.items():
            channels, height, width = model.shapes[int(name)]
            if height == level:
                assert isinstance(operator, KoopmanOperator)
                alpha, beta = (part.expand(channels // 2, height, width) for part in operator.eigenvalues())
                rows = torch.stack([alpha, beta, -beta, alpha], dim=-1)
                blocks.append(rows.reshape(-1, 2, 2).double())
        a = torch.cat(blocks)
        pairs = torch.complex(spectrum.alpha, spectrum.beta)
        for found, expected in (
            (pairs, torch.linalg.eigvals(a)),
            (spectrum.propagator(-0.7), torch.linalg.eigvals(torch.matrix_exp(-0.7 * a))),
        ):
            both = torch.cat([found.flatten(), found.flatten().conj()])
            torch.testing.assert_close(
                sorted_values(both), sorted_values(expected), rtol=1e-5, atol=2e-5, check_dtype=False
            )
        assert spectrum.alpha.shape[1:] == (level, level)


@pytest.mark.parametrize(
    ("time", "expected"),
    [("karras", -1.0), ("log", -1.0), ("sigma-unit", 0.002 / 80 - 1), ("angle", -0.9934747127)],
)
def test_the_evolution_goes_from_noise_to_image(
    network: PreconditionedUNet, time: str, expected: float
) -> None:
    """2/pi (arctan 0.004 - arctan 160), and 0 to 1 of the rescaled ones."""
    assert whole_evolution(
        HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(time=time)))
    ) == pytest.approx(expected)
