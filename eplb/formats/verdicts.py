"""What a gate found, as the texts that people, CI servers and code hosts read.

Rule ids are stable: `limit/NAME` for a limit of one's own and `baseline/NAME` for an earlier
report, NAME being the figure that is judged.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

FORMAT, VERSION = "eplb-check", 1

# What XML 1.0 has no way to write.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Verdict(NamedTuple):
    """One figure against one rule: it was `found`, and must be, say, `>=` the `bound`.

    `is_better` is for baselines: better than the earlier report by more than the tolerance.
    """

    rule: str
    title: str
    figure: str
    found: float
    must_be: str
    bound: float
    passed: bool
    is_better: bool
    message: str


class Judgement(NamedTuple):
    """All verdicts on a plan; `scored` says in a line on what, `update` is the command that makes
    what was found the new baseline."""

    plan: str
    traces: tuple[str, ...]
    scored: str
    summary: Mapping[str, float]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    update: str | None = None

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The rules that are broken."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return not self.broken

    @property
    def advice(self) -> str | None:
        """What to do about the baseline, where there is anything to do."""
        if self.update is None:
            return None
        if any(not verdict.passed for verdict in self.verdicts if _of_baseline(verdict)):
            return f"if this is meant, make it the new baseline: {self.update}"
        better = [verdict.figure for verdict in self.verdicts if verdict.is_better]
        if not better:
            return None
        return f"better than the baseline in {', '.join(better)}; to hold on to it: {self.update}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes and the advice."""
        return self.notes if self.advice is None else (*self.notes, self.advice)

    @property
    def ending(self) -> str:
        """The whole in a line."""
        total = f"{len(self.verdicts)} rule{'s' if len(self.verdicts) > 1 else ''}"
        if self.passed:
            return f"gate passed: {total} held"
        names = ", ".join(verdict.title for verdict in self.broken)
        return f"gate failed: {len(self.broken)} of {total} broken: {names}"


def text(judgement: Judgement) -> str:
    """A line a rule, the ending last."""
    lines = [f"scored  {judgement.plan} on {_scored(judgement)}"]
    lines += [_line(verdict) for verdict in judgement.verdicts]
    lines += [f"note  {note}" for note in judgement.notes]
    if judgement.advice is not None:
        lines.append(f"next  {judgement.advice}")
    return "\n".join(_one_line(line) for line in [*lines, judgement.ending]) + "\n"


def json_text(judgement: Judgement) -> str:
    """One object."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "passed": judgement.passed,
        "plan": judgement.plan,
        "traces": judgement.traces,
        "scored": judgement.scored,
        "verdicts": [verdict._asdict() for verdict in judgement.verdicts],
        "notes": judgement.notes,
        "advice": judgement.advice,
        "summary": dict(judgement.summary),
    }
    return json.dumps(document, indent=1) + "\n"


def github(judgement: Judgement) -> str:
    """Workflow commands of GitHub Actions, which it shows as annotations, among plain lines."""
    where = {} if os.path.isabs(judgement.plan) else {"file": judgement.plan}
    lines = [_one_line(f"scored  {judgement.plan} on {_scored(judgement)}")]
    for verdict in judgement.verdicts:
        if verdict.passed:
            lines.append(_one_line(_line(verdict)))
        else:
            title = f"eplb: {verdict.title}"
            lines.append(
                _workflow_command("error", {**where, "title": title}, _whole(judgement, verdict))
            )
    lines += [
        _workflow_command("notice", {"title": "eplb check"}, note) for note in judgement.remarks
    ]
    return "\n".join([*lines, _one_line(judgement.ending)]) + "\n"


def junit(judgement: Judgement) -> str:
    """JUnit XML: a test case a rule, named alike in every run."""
    counts = {
        "tests": str(len(judgement.verdicts)),
        "failures": str(len(judgement.broken)),
        "errors": "0",
        "time": "0",
    }
    root = ElementTree.Element("testsuites", {"name": "eplb check", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "eplb check", **counts})
    for verdict in judgement.verdicts:
        kind = verdict.rule.partition("/")[0]
        names = {"classname": f"eplb.{kind}", "name": verdict.title, "file": judgement.plan}
        case = ElementTree.SubElement(
            suite, "testcase", {key: _legal(name) for key, name in names.items()} | {"time": "0"}
        )
        message = _legal(_whole(judgement, verdict))
        if not verdict.passed:
            failure = {"message": message, "type": verdict.rule}
            ElementTree.SubElement(case, "failure", failure).text = message
        else:
            ElementTree.SubElement(case, "system-out").text = message
    ElementTree.SubElement(suite, "system-out").text = _legal(
        "\n".join([*judgement.remarks, judgement.ending])
    )
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def sarif(judgement: Judgement) -> str:
    """SARIF 2.1.0: a result a broken rule. Code hosts take every result for an alert, so what
    passed is told among the rules only, and notes as notifications."""
    rules = {verdict.rule: verdict for verdict in judgement.verdicts}
    run: dict[str, Any] = {
        "tool": {
            "driver": {"name": "eplb", "rules": [_rule(verdict) for verdict in rules.values()]}
        },
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": note}} for note in judgement.remarks
                ],
            }
        ],
        "results": [
            {
                "ruleId": verdict.rule,
                "ruleIndex": list(rules).index(verdict.rule),
                "level": "error",
                "message": {"text": _whole(judgement, verdict)},
                "locations": [
                    {
                        "physicalLocation": {
                            "artifactLocation": _artifact(judgement.plan),
                            "region": {"startLine": 1},
                        }
                    }
                ],
                # Tells two limits on one figure apart, and is the same in every run.
                "partialFingerprints": {
                    "primaryLocationLineHash": f"{verdict.rule}:{verdict.title}"
                },
            }
            for verdict in judgement.broken
        ],
    }
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(document, indent=1) + "\n"


WRITERS: dict[str, Callable[[Judgement], str]] = {
    "text": text,
    "json": json_text,
    "junit": junit,
    "github": github,
    "sarif": sarif,
}


def _of_baseline(verdict: Verdict) -> bool:
    return verdict.rule.startswith("baseline/")


def _scored(judgement: Judgement) -> str:
    return f"{', '.join(judgement.traces)}: {judgement.scored}"


def _line(verdict: Verdict) -> str:
    return f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.message}"


def _whole(judgement: Judgement, verdict: Verdict) -> str:
    """The message of a verdict where nothing stands around it."""
    return f"{verdict.message} ({judgement.plan} on {_scored(judgement)})"


def _one_line(line: str) -> str:
    """Without the line breaks that a file name may have."""
    return line.replace("\r", "\\r").replace("\n", "\\n")


def _workflow_command(kind: str, properties: Mapping[str, str], message: str) -> str:
    """`::kind key=value,…::message`, with what would end a value escaped."""
    named = ",".join(
        f"{key}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}"
        for key, value in properties.items()
    )
    return f"::{kind} {named}::{_escaped(message)}"


def _escaped(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _legal(value: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)


def _rule(verdict: Verdict) -> dict[str, Any]:
    what = "is worse than in the baseline" if _of_baseline(verdict) else "breaks its limit"
    return {
        "id": verdict.rule,
        "shortDescription": {"text": f"{verdict.figure} {what}"},
        "help": {"text": "eplb check scores a plan on a trace; docs/ci.md has its rules."},
        "defaultConfiguration": {"level": "error"},
    }


def _artifact(path: str) -> dict[str, str]:
    """Where a file is: inside the repository, or by its absolute name."""
    uri = quote(os.fsencode(path))
    if os.path.isabs(path):
        return {"uri": f"file://{uri}"}
    return {"uri": uri, "uriBaseId": "%SRCROOT%"}
