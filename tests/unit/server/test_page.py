"""The playground's files as they are sent, and what its form is told."""

import json
import re
from importlib import resources
from typing import Any

import pytest
import requests
from tests.unit.server.conftest import Running, Serve

from mtad.config import VERIFIER_NAMES

FOLDER = resources.files("mtad.server") / "playground"
FILES = {item.name: item.read_text(encoding="utf-8") for item in FOLDER.iterdir() if item.is_file()}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def get(running: Running, path: str, **headers: str) -> requests.Response:
    return requests.get(running.url + path, headers=headers, timeout=60)


def events(running: Running, **settings: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": "why"}], "stream": True, "explain": True, **settings}
    reply = requests.post(running.url + "/v1/chat/completions", json=body, timeout=60)
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n")]

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in lines if line.startswith("{")]


def test_every_file_is_served_with_its_type_and_under_a_strict_policy(serve: Serve) -> None:
    running = serve()
    for name, text in FILES.items():
        reply = get(running, "/" if name == "index.html" else f"/playground/{name}")
        assert reply.status_code == 200
        assert reply.content.decode() == text
        assert reply.headers["content-type"].startswith(TYPES[name.rsplit(".")[-1]])
        assert reply.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_browser_has_is_not_sent_again(serve: Serve) -> None:
    running = serve()
    tag = get(running, "/").headers["etag"]
    for known in (tag, f'W/{tag}, "other"'):
        again = get(running, "/", **{"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get(running, "/", **{"if-none-match": '"other"'}).status_code == 200
    assert requests.head(running.url + "/", timeout=60).headers["etag"] == tag


def test_a_file_that_is_not_there_is_404_and_folders_stay_closed(serve: Serve) -> None:
    running = serve()
    for name in ("index.html", "none.js", "..%2fpage.py", "%2e%2e/page.py"):
        reply = get(running, f"/playground/{name}")
        assert reply.status_code == 404
        assert "\n" not in reply.json()["error"]["message"]


def test_the_page_and_its_files_are_counted(serve: Serve) -> None:
    running = serve()
    get(running, "/")
    get(running, "/playground/main.js")
    get(running, "/playground/none.js")
    metrics = get(running, "/metrics").text
    for path, status in (("/", 200), ("/playground/{name}", 200), ("/playground/{name}", 404)):
        assert f'mtad_replies_total{{path="{path}",status="{status}"}} 1.0' in metrics


def test_no_file_names_another_host() -> None:
    for name, text in FILES.items():
        assert "//" not in re.sub(r"^\s*//.*|\s// .*", "", text.replace(SVG_NAMESPACE, ""), flags=re.MULTILINE), name


def test_everything_that_a_file_asks_for_is_there() -> None:
    for name, text in FILES.items():
        wanted = re.findall(r'(?:src|href)="playground/([^"]+)"|from "\./([^"]+)"', text)
        assert {first or second for first, second in wanted} <= FILES.keys(), name
    assert "<style" not in FILES["index.html"]
    assert "style=" not in FILES["index.html"]
    assert not re.search(r"<script(?![^>]*src=)", FILES["index.html"])


def test_files_stay_short() -> None:
    for name, text in FILES.items():
        lines = text.splitlines()
        assert len(lines) <= 300, name
        assert max(map(len, lines)) <= 120 or name.endswith(("css", "svg", "html")), name


def test_the_form_knows_dials_methods_and_defaults(serve: Serve) -> None:
    facts = get(serve(), "/playground/form.json").json()
    assert facts["needs_key"] is False
    assert facts["max_tokens"] == 120
    lossless = {item["name"]: item["is_lossless"] for item in facts["methods"]}
    assert lossless == {"mmtad": False, "mtad": False, "speculative": True, "autoregressive": True}
    dials = facts["dials"]
    assert dials["max_new_tokens"]["default"] == 12
    assert (dials["temperature"]["default"], dials["top_k"]["default"], dials["top_p"]["default"]) == (1.0, 10, 0.9)
    assert (dials["threshold"]["above"], dials["threshold"]["maximum"]) == (0, 1)
    assert dials["verifier"]["choices"] == list(VERIFIER_NAMES)


def test_names_in_the_page_are_the_servers(serve: Serve) -> None:
    facts = get(serve(), "/playground/form.json").json()
    text = FILES["methods.js"]
    described = text.split("METHODS = {")[1].split("\n};")[0]
    assert re.findall(r"^  (\w+): \{", described, flags=re.MULTILINE) == [item["name"] for item in facts["methods"]]
    dials = text.split("DIALS = {")[1].split("\n};")[0]
    assert set(re.findall(r"^  (\w+):", dials, flags=re.MULTILINE)) == set(facts["dials"])
    rules = re.search(r"JOINT_RULES = (\[.*\])", text)
    assert rules is not None
    assert set(json.loads(rules[1])) < set(VERIFIER_NAMES)


def test_a_server_with_keys_shows_the_page_and_says_so(serve: Serve) -> None:
    running = serve(keys={"one": "secret"})
    assert get(running, "/").status_code == 200
    facts = get(running, "/playground/form.json")
    assert facts.json()["needs_key"] is True
    assert "secret" not in facts.text
    assert "tiny" not in facts.text


def test_explanations_have_texts_and_no_number_that_json_lacks(serve: Serve) -> None:
    chunks = events(serve(), seed=1, max_tokens=40, top_k=3)
    steps = [chunk["choices"][0]["mtad"]["step"] for chunk in chunks if "mtad" in chunk["choices"][0]]
    assert any(None in step["joint_log_ratios"] for step in steps)
    for step in steps:
        assert len(step["texts"]) == len(step["tokens"])
        assert all(step["texts"])
        assert step["next_text"]
        assert step["winner_path"]


@pytest.mark.parametrize(("method", "is_lossless"), [("mmtad", False), ("speculative", True)])
def test_a_streams_end_says_whether_the_rule_is_lossless(serve: Serve, method: str, is_lossless: bool) -> None:
    last = events(serve(), method=method)[-1]["choices"][0]["mtad"]
    assert last["is_lossless"] is is_lossless
    assert last["statistics"]["method"] == method
