"""The templates of reports, in the files beside this one: what is put into them is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

_ENVIRONMENT = Environment(
    loader=PackageLoader("hkdpipe.stages.reports", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def template(name: str) -> Template:
    return _ENVIRONMENT.get_template(name)
