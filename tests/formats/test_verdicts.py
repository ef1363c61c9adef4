"""Verdicts as people, CI servers and code hosts read them, each read back by a parser."""

import json
import re
from xml.etree import ElementTree

import pytest

from eplb.formats.verdicts import WRITERS, Judgement, Verdict

HELD = Verdict(
    "limit/efficiency", "efficiency < 80%", "efficiency", 0.9, ">=", 0.8, True, False,
    "efficiency is 0.9; at least 0.8 is expected",
)  # fmt: skip
BROKEN = Verdict(
    "limit/moves", "moves > 3", "moves", 5, "<=", 3, False, False,
    "moves is 5 & more; at most 3 is expected: 60% less,\nsay",
)  # fmt: skip
WORSE = Verdict(
    "baseline/efficiency", "efficiency against the baseline", "efficiency", 0.9, ">=", 0.95, False,
    False, "efficiency is 0.9, in the baseline 0.95 (-5.26%); at least 0.95 is expected",
)  # fmt: skip
BETTER = WORSE._replace(passed=True, is_better=True, message="efficiency is 0.9, better")
UPDATE = "eplb simulate t.npz --plan p.json -o report.json --force"


def _judgement(*verdicts: Verdict, plan: str = "p.json", update: str | None = UPDATE) -> Judgement:
    return Judgement(
        plan, ("t.npz", "u.npz"), "8 windows × 5 layers", {"efficiency": 0.9, "moves": 5}, verdicts,
        ("moves is odd",), update,
    )  # fmt: skip


def test_text_has_a_line_a_rule_and_the_ending_last() -> None:
    """PASS and FAIL lines, notes, what to do, the result; no line break of a message or a name
    breaks a line."""
    lines = WRITERS["text"](_judgement(HELD, BROKEN, WORSE, plan="p\n.json")).splitlines()
    assert lines == [
        "scored  p\\n.json on t.npz, u.npz: 8 windows × 5 layers",
        "PASS  efficiency is 0.9; at least 0.8 is expected",
        "FAIL  moves is 5 & more; at most 3 is expected: 60% less,\\nsay",
        f"FAIL  {WORSE.message}",
        "note  moves is odd",
        f"next  if this is meant, make it the new baseline: {UPDATE}",
        "gate failed: 2 of 3 rules broken: moves > 3, efficiency against the baseline",
    ]


@pytest.mark.parametrize(
    ("verdicts", "update", "advice", "ending"),
    [
        ([HELD], None, None, "gate passed: 1 rule held"),
        ([HELD], UPDATE, None, "gate passed: 1 rule held"),
        ([HELD, BETTER], UPDATE,
         f"better than the baseline in efficiency; to hold on to it: {UPDATE}",
         "gate passed: 2 rules held"),
        ([WORSE], UPDATE, f"if this is meant, make it the new baseline: {UPDATE}",
         "gate failed: 1 of 1 rule broken: efficiency against the baseline"),
        ([BROKEN], UPDATE, None, "gate failed: 1 of 1 rule broken: moves > 3"),
    ],
)  # fmt: skip
def test_advice_is_given_where_the_baseline_is_not_met(
    verdicts: list[Verdict], update: str | None, advice: str | None, ending: str
) -> None:
    """Better says how to hold on to it, worse how to accept it; as the baseline needs no words."""
    judgement = _judgement(*verdicts, update=update)
    assert (judgement.advice, judgement.ending) == (advice, ending)


def test_json_is_one_object() -> None:
    """With every number that was judged."""
    document = json.loads(WRITERS["json"](_judgement(HELD, BROKEN)))
    assert (document["format"], document["version"], document["passed"]) == ("eplb-check", 1, False)
    assert document["verdicts"][1] == BROKEN._asdict()
    assert document["summary"] == {"efficiency": 0.9, "moves": 5}
    assert document["notes"] == ["moves is odd"]


def test_junit_is_a_test_case_a_rule() -> None:
    """Counts agree; names do not depend on what was found; failures say what, and on what."""
    root = ElementTree.fromstring(WRITERS["junit"](_judgement(HELD, BROKEN, WORSE)).encode())
    (suite,) = root
    assert root.tag == "testsuites"
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures")) == ("3", "2")
    cases = suite.findall("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("eplb.limit", "efficiency < 80%"),
        ("eplb.limit", "moves > 3"),
        ("eplb.baseline", "efficiency against the baseline"),
    ]
    assert {case.get("file") for case in cases} == {"p.json"}
    assert [len(case.findall("failure")) for case in cases] == [0, 1, 1]
    failure = cases[1].find("failure")
    assert failure is not None
    whole = f"{BROKEN.message} (p.json on t.npz, u.npz: 8 windows × 5 layers)"
    assert (failure.get("message"), failure.text) == (whole, whole)
    assert "moves is odd" in suite.findtext("system-out", "")


def test_junit_survives_any_file_name() -> None:
    """Control characters and broken encodings, which XML cannot write, are replaced."""
    text = WRITERS["junit"](_judgement(BROKEN, plan='a\x01\udcff<&".json'))
    (case,) = ElementTree.fromstring(text.encode()).iter("testcase")
    assert case.get("file") == 'a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}<&".json'


def _commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """The workflow commands of a log, as a runner reads them."""
    found = []
    for kind, properties, message in re.findall(r"^::(\w+) ([^:]*)::(.*)$", text, flags=re.M):
        named = dict(pair.split("=", 1) for pair in properties.split(","))
        values = [*named.values(), message]
        for index, value in enumerate(values):
            for code, sign in (("%3A", ":"), ("%2C", ","), ("%0A", "\n"), ("%25", "%")):
                value = value.replace(code, sign)
            values[index] = value
        found.append((kind, dict(zip(named, values, strict=False)), values[-1]))
    return found


def test_github_annotates_what_broke() -> None:
    """An error a broken rule, a notice a note; what has a meaning to the runner is escaped, and
    reads back as it was."""
    text = WRITERS["github"](_judgement(HELD, BROKEN, BETTER, plan="a,b:c%.json"))
    error, note, advice = _commands(text)
    whole = f"{BROKEN.message} (a,b:c%.json on t.npz, u.npz: 8 windows × 5 layers)"
    assert error == ("error", {"file": "a,b:c%.json", "title": "eplb: moves > 3"}, whole)
    assert note == ("notice", {"title": "eplb check"}, "moves is odd")
    assert advice[0] == "notice"
    assert UPDATE in advice[2]
    assert f"PASS  {HELD.message}" in text.splitlines()
    assert text.splitlines()[-1] == "gate failed: 1 of 3 rules broken: moves > 3"


def test_github_has_no_file_for_a_plan_from_elsewhere() -> None:
    """Only files of the repository can carry annotations."""
    ((_, properties, _), *_) = _commands(WRITERS["github"](_judgement(BROKEN, plan="/p.json")))
    assert properties == {"title": "eplb: moves > 3"}


def test_sarif_has_a_result_a_broken_rule() -> None:
    """What the standard requires and code hosts need: version, tool, rules, results that name their
    rule by id and index, a message, a place; nothing for what passed."""
    judgement = _judgement(HELD, BROKEN, WORSE, BROKEN._replace(title="moves > 4"))
    document = json.loads(WRITERS["sarif"](judgement))
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-2.1.0.json")
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    ids = [rule["id"] for rule in rules]
    assert ids == ["limit/efficiency", "limit/moves", "baseline/efficiency"]
    assert all(rule["shortDescription"]["text"] for rule in rules)
    assert [result["ruleId"] for result in run["results"]] == [ids[1], ids[2], ids[1]]
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] == "error"
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"] == {
            "artifactLocation": {"uri": "p.json", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 1},
        }
    prints = [r["partialFingerprints"]["primaryLocationLineHash"] for r in run["results"]]
    assert len(set(prints)) == 3
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    said = [n["message"]["text"] for n in invocation["toolExecutionNotifications"]]
    assert said == ["moves is odd", judgement.advice]


@pytest.mark.parametrize(
    ("plan", "artifact"),
    [
        ("a b/ü.json", {"uri": "a%20b/%C3%BC.json", "uriBaseId": "%SRCROOT%"}),
        ("/x y.json", {"uri": "file:///x%20y.json"}),
        ("\udcff.json", {"uri": "%FF.json", "uriBaseId": "%SRCROOT%"}),
    ],
)
def test_sarif_names_files_by_uri(plan: str, artifact: dict[str, str]) -> None:
    """Inside the repository by a relative one."""
    document = json.loads(WRITERS["sarif"](_judgement(BROKEN, plan=plan)))
    (result,) = document["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == artifact
