import click
import pytest

from hkdpipe.manifests.ground.errors import InputError, Name, Remedy, UsageError, WrongValue
from hkdpipe.pipeline.error_wording import worded
from hkdpipe.stages.settings.generation_settings import GenerationSettings

COMMAND = click.Command(
    "paint",
    params=[click.Option(["--class", "class_number"]), click.Option(["--steps"]), click.Argument(["model"])],
)


class Unknown:
    """Settings of no section."""


@pytest.mark.parametrize(
    ("parts", "below", "said"),
    [
        ([Name("steps", GenerationSettings), ": got 0"], "steps: got 0", "generation.steps: got 0"),
        ([Name("steps"), ": got 0"], "steps: got 0", "--steps: got 0"),
        ([Name("class_number"), ": got 7"], "class_number: got 7", "--class: got 7"),
        ([Name("steps", Unknown), ": got 0"], "steps: got 0", "--steps: got 0"),
        (
            ["{0}: ", Name("model"), ": not a {model}"],
            "{0}: model: not a {model}",
            "{0}: MODEL: not a {model}",
        ),
        ([Name("height"), ": got 0"], "height: got 0", "height: got 0"),
        ([Name("lpips"), ": gone"], "lpips: gone", "evaluation.lpips: gone"),
        (["a: ", Remedy("a repair", {"archive": "a"})], "a: a repair", "a: hkdpipe verify a --repair"),
    ],
)
def test_names_become_options_and_keys(parts: list[str | Name | Remedy], below: str, said: str) -> None:
    error = WrongValue(*parts)
    assert isinstance(error, UsageError)
    assert str(error) == below
    assert worded(error, COMMAND) == said


def test_other_errors_stay_as_they_are() -> None:
    assert worded(InputError("a: missing"), COMMAND) == "a: missing"
    assert worded(WrongValue(Name("count"), ": got 0"), None) == "generation.count: got 0"
