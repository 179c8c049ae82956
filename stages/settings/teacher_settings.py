"""[teacher]: which teacher. Free of torch."""

from dataclasses import dataclass

from hkdpipe.manifests.ground.sections import setting


@dataclass(frozen=True)
class TeacherSettings:
    """[teacher]"""

    source: str = setting(
        "digits",
        "'digits': the teacher that ships with hkdpipe; a teacher's folder; EDM's snapshot (.pkl) or a state "
        "dict (.pt, .pth)",
    )
    licence: str = setting(
        "",
        "the licence of a teacher that does not name its own; carried into the archive's manifest, the "
        "export and its model card",
    )
