"""`eplb explain`: what a finding means."""

import click

from .. import terminal

_EPILOG = """\b
Examples:
  eplb explain EP109
  eplb explain
"""


@click.command("explain", epilog=_EPILOG)
@click.argument("ids", metavar="[ID]...", nargs=-1)
def command(ids: tuple[str, ...]) -> None:
    """Say what a finding means, why it matters and what to do; without an ID, list them all."""
    from eplb.errors import InputError
    from eplb.findings import RULES
    from eplb.formats.engines import constraints

    rules = {**RULES, **constraints.RULES}
    unknown = [name for name in ids if name.upper() not in rules]
    if unknown:
        raise InputError(f"no finding is called {unknown[0]!r}; {', '.join(rules)} are known")
    if not ids:
        terminal.facts([(name, rule.title) for name, rule in rules.items()])
        return
    for name in ids:
        rule = rules[name.upper()]
        terminal.facts([(name.upper(), rule.title), ("why", rule.why), ("remedy", rule.remedy)])
