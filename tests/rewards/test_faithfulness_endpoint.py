"""A chat endpoint as VQA backend and as question writer, against a server of the test's own."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vqa_tiny
from PIL import Image
from transformers import AutoTokenizer, LlamaForCausalLM

from rewards.__main__ import main
from rewards.errors import InputError, ModelError
from rewards.faithfulness import load_backend, load_questions, write_questions
from rewards.faithfulness.endpoint import ChatEndpoint, say
from rewards.faithfulness.vqascore import VqaScore
from rewards.faithfulness.writer import EndpointText, QuestionWriter, TransformersText, parse_written, request

Reply = tuple[int, dict[str, str], bytes]


class Server:
    """Answers each request with `reply(body, how many came before)`; keeps bodies and headers."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                status, headers, data = reply(body, number)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Reply]], Server]]:
    """serve(reply) -> a running Server."""
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any], int], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(text: str, tokens: dict[str, float] | None = None) -> Reply:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens is not None:
        top = [{"token": token, "logprob": math.log(share)} for token, share in tokens.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    return 200, {"Content-Type": "application/json"}, json.dumps({"choices": [choice]}).encode()


def pixels_of(body: dict[str, Any]) -> np.ndarray:
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def text_sent(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[1]["text"]


def test_yes_and_no_are_sums_of_token_probabilities_in_the_order_of_the_questions(serve: Callable, images: list):
    shares = {0: {"Yes": 0.5, " yes": 0.1, "No.": 0.2, "maybe": 0.1}, 1: {"NO": 0.9, "maybe": 0.05}, 2: {"so": 1.0}}

    def reply(body: dict[str, Any], number: int) -> Reply:
        return completion("Yes", shares[int(text_sent(body)[0])])

    server = serve(reply)
    backend = load_backend({"name": "endpoint", "url": server.url, "model": "judge", "key_env": None})
    found = backend.yes_no(images[:3], [f"{number} is it red?" for number in range(3)])
    assert [(one.yes, one.no) for one in found] == [
        (pytest.approx(0.6), pytest.approx(0.2)), (0.0, pytest.approx(0.9)), (0.0, 0.0)
    ]  # fmt: skip
    assert server.paths == ["/v1/chat/completions"] * 3
    for body in server.bodies:
        image = images[int(text_sent(body)[0])]
        np.testing.assert_array_equal(pixels_of(body), np.asarray(image))
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0, 1)
        assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        assert text_sent(body).endswith("is it red? Please answer Yes or No.")


def test_vqascore_through_an_endpoint_is_the_probability_of_yes(serve: Callable, images: list, tmp_path: Path):
    server = serve(lambda body, number: completion("Yes", {"Yes": pixels_of(body).mean() / 255, "No": 0.01}))
    spec = {"name": "endpoint", "url": server.url, "model": "judge", "key_env": None}
    scorer = VqaScore(spec, answers=tmp_path / "answers.jsonl")
    expected = [np.asarray(image).mean() / 255 for image in images]
    np.testing.assert_allclose(scorer.score(images, ["a cat"] * len(images)), expected, rtol=1e-5)
    asked = len(server.bodies)
    assert asked == len(images)
    again = VqaScore(spec, answers=tmp_path / "answers.jsonl")
    np.testing.assert_allclose(again.score(images, ["a cat"] * len(images)), expected, rtol=1e-5)
    assert len(server.bodies) == asked


def test_free_answers_are_first_lines(serve: Callable, images: list):
    server = serve(lambda body, number: completion(" A red cat \nand more"))
    backend = load_backend({"name": "endpoint", "url": server.url, "model": "judge", "key_env": None})
    assert backend.answer(images[:2], ["what?", "who?"]) == ["A red cat"] * 2


def test_busy_servers_are_asked_again_after_the_time_that_they_name(serve: Callable):
    def reply(body: dict[str, Any], number: int) -> Reply:
        return (429, {"Retry-After": "0"}, b"busy") if number < 2 else completion("done")

    server = serve(reply)
    [choice] = ChatEndpoint(server.url, "m", None, backoff_s=30.0).complete([say("hello")])
    assert choice["message"] == {"role": "assistant", "content": "done"}
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "requests", "message"),
    [
        ((401, {}, b"no such key"), 1, r"refused \(401 no such key\)"),
        ((503, {}, b""), 2, "no answer in 2 attempts"),
        ((200, {}, b"<html>"), 2, "not a chat completion"),
        ((200, {}, b'{"choices": []}'), 2, "not a chat completion"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), 1, "refused"),
    ],
)
def test_servers_that_cannot_answer_are_an_error(serve: Callable, reply: Reply, requests: int, message: str):
    server = serve(lambda body, number: reply)
    with pytest.raises(ModelError, match=message):
        ChatEndpoint(server.url, "m", None, attempts=2, backoff_s=0.0).complete([say("hello")])
    assert len(server.bodies) == requests


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_is_not_about_a_request_ends_all_of_them(serve: Callable, status: int):
    server = serve(lambda body, number: (status, {}, b"sorry"))
    with pytest.raises(ModelError, match=rf"refused \({status} sorry\); check url, model, key and credit"):
        ChatEndpoint(server.url, "m", None, parallel=1).try_complete([say("hello")])


def test_the_key_is_sent_and_never_told(serve: Callable, monkeypatch: pytest.MonkeyPatch):
    server = serve(lambda body, number: (401, {}, b"wrong"))
    endpoint = ChatEndpoint(server.url, "m", "TEST_ENDPOINT_KEY")
    with pytest.raises(InputError, match="TEST_ENDPOINT_KEY is not set"):
        endpoint.complete([say("hello")])
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "secret-value")
    with pytest.raises(ModelError) as caught:
        endpoint.complete([say("hello")])
    assert server.headers[0]["Authorization"] == "Bearer secret-value"
    assert "secret-value" not in str(caught.value) + str(endpoint.fingerprint()) + str(vars(endpoint))


def test_a_server_that_repeats_the_key_does_not_bring_it_into_an_error(serve: Callable, monkeypatch: Any):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "secret-value")
    for padding in (0, 280, 295):
        server = serve(lambda body, number, padding=padding: (401, {}, b"x" * padding + b" Bearer secret-value is bad"))
        with pytest.raises(ModelError, match="refused") as caught:
            ChatEndpoint(server.url, "m", "TEST_ENDPOINT_KEY").complete([say("hello")])
        assert "secret" not in str(caught.value)


def test_a_key_with_a_line_end_is_refused_without_being_told(monkeypatch: pytest.MonkeyPatch):
    """As `export KEY="$(cat file)"` never gives, but env files do."""
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "secret-value\r")
    with pytest.raises(InputError, match="TEST_ENDPOINT_KEY has spaces") as caught:
        ChatEndpoint("http://localhost:1/v1", "m", "TEST_ENDPOINT_KEY").complete([say("hello")])
    assert "secret-value" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:pw@host/v1", "http://:pw@host/v1", "http://host/v1?key=pw", "me:pw@host"])
def test_an_address_with_a_password_is_refused_without_being_told(url: str):
    with pytest.raises(InputError, match="without user name, password or query") as caught:
        ChatEndpoint(url, "m", None)
    assert "pw" not in str(caught.value).replace("password", "")


def test_a_server_without_probabilities_cannot_say_how_probable_yes_is(serve: Callable, images: list):
    server = serve(lambda body, number: completion("Yes"))
    backend = load_backend({"name": "endpoint", "url": server.url, "model": "judge", "key_env": None})
    with pytest.raises(ModelError, match="no token probabilities"):
        backend.yes_no(images[:1], ["is it red?"])


def written(*questions: dict[str, Any]) -> str:
    return "Here you are:\n" + json.dumps({"questions": list(questions)}) + "\nDone."


NO_JSON = 'the answer is not JSON of the form {"questions": [...]}.'
CAT = {"id": 1, "question": "Is there a cat?", "category": "entity", "parents": [], "negative": "Is there no cat?"}
RED = {"id": 2, "question": "Is the cat red?", "category": "attribute", "parents": [1], "negative": "Is it not red?"}


def test_a_writer_asks_again_with_the_complaint_and_tells_what_stays_unwritten(serve: Callable, tmp_path: Path):
    def reply(body: dict[str, Any], number: int) -> Reply:
        text = text_sent(body)
        if '"a red cat"' in text:
            return completion(written(CAT, RED) if "was refused" in text else "I would rather not.")
        return completion(written(CAT, CAT) if '"a dog"' in text else written(CAT))

    server = serve(reply)
    writer = QuestionWriter(EndpointText(ChatEndpoint(server.url, "m", None)), attempts=3)
    book = writer.write(["a cat", "a red cat", "a dog", "a cat"])
    assert [(item.prompt, [q.text for q in item.questions]) for item in book.items] == [
        ("a cat", ["Is there a cat?"]),
        ("a red cat", ["Is there a cat?", "Is the cat red?"]),
    ]
    assert book.items[1].questions[1].parents == ("1",)
    assert [(defect.kind, defect.item, defect.detail) for defect in book.defects] == [
        ("unwritten", "3", "two questions have the same id.")
    ]
    # One request for the cat, two for the red one, three for the dog; the complaint goes along.
    assert len(server.bodies) == 6
    assert any("refused: two questions have the same id." in text_sent(body) for body in server.bodies)
    path = tmp_path / "questions.jsonl"
    write_questions(book, path)
    assert load_questions(path).items == book.items


def test_a_prompt_that_a_server_refuses_is_unwritten_and_the_others_are_kept(serve: Callable):
    empty = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}

    def reply(body: dict[str, Any], number: int) -> Reply:
        text = text_sent(body)
        if '"a dog"' in text:
            return 400, {}, b"against the rules"
        return (200, {}, json.dumps(empty).encode()) if '"a cow"' in text else completion(written(CAT))

    server = serve(reply)
    writer = QuestionWriter(EndpointText(ChatEndpoint(server.url, "m", None)), batch_size=2)
    book = writer.write(["a cat", "a dog", "a cow"])
    assert [item.prompt for item in book.items] == ["a cat"]
    assert [(defect.kind, defect.item, defect.detail) for defect in book.defects] == [
        ("unwritten", "2", f"{server.url}: refused (400 against the rules); check url, model and key."),
        ("unwritten", "3", "the endpoint answered without text (finish_reason 'content_filter')."),
    ]
    assert len(server.bodies) == 3


def test_what_is_written_is_kept_when_a_server_goes_silent(serve: Callable):
    server = serve(lambda body, number: completion(written(CAT)) if '"a cat"' in text_sent(body) else (503, {}, b""))
    writer = QuestionWriter(EndpointText(ChatEndpoint(server.url, "m", None, attempts=1)), batch_size=1)
    book = writer.write(["a cat", "a dog", "a cow"])
    assert [item.prompt for item in book.items] == ["a cat"]
    assert [(defect.kind, defect.item) for defect in book.defects] == [("unwritten", "2"), ("unwritten", "3")]
    assert all("no answer in 1 attempts" in defect.detail for defect in book.defects)
    assert len(server.bodies) == 2
    with pytest.raises(ModelError, match="no answer in 1 attempts"):
        writer.write(["a dog", "a cat"])


def test_a_writer_that_never_gets_questions_says_why(serve: Callable):
    server = serve(lambda body, number: completion("no"))
    with pytest.raises(InputError, match=r"no prompt got questions; first complaint: the answer is not JSON"):
        QuestionWriter(EndpointText(ChatEndpoint(server.url, "m", None)), attempts=2).write(["a cat"])


@pytest.mark.parametrize(
    ("questions", "style", "message"),
    [
        ([], "yes_no", "1 to 60"),
        ([CAT | {"question": "There is a cat."}], "yes_no", "question mark"),
        ([CAT | {"answer": "no"}], "yes_no", "right answer must be yes"),
        ([CAT, RED | {"parents": [7]}], "yes_no", "parent 7 is no other question"),
        ([CAT | {"parents": [2]}, RED], "yes_no", "circle"),
        ([CAT, RED | {"question": "is there a cat?"}], "yes_no", "twice"),
        ([CAT | {"colour": "x"}], "yes_no", "has no 'colour'"),
        ([{"id": 1, "question": "What?", "choices": ["a"], "answer": "a"}], "choices", "2 to 4"),
        ([{"id": 1, "question": "What?", "choices": ["a", "b"], "answer": "c"}], "choices", "not among a, b"),
    ],
)
def test_what_a_model_writes_is_checked(questions: list, style: Any, message: str):
    with pytest.raises(InputError, match=message):
        parse_written(written(*questions), style)


def test_choices_are_written_for_tifa():
    question = {
        "id": 1,
        "question": "What color?",
        "choices": ["red", "blue"],
        "answer": "red",
        "category": "attribute",
    }
    [found] = parse_written(written(question), "choices")
    assert (found.choices, found.answer) == (("red", "blue"), "red")
    assert "choices" in request("a cat", "choices")
    assert '"a \\"red\\" cat"' in request('a "red" cat', "yes_no")


def test_a_language_model_writes_each_answer_as_it_would_alone(tmp_path: Path):
    folder = vqa_tiny.language_model(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    prompts = ["a cat", "two dogs beside a much longer cat"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(f"user:{prompt}<eos>assistant:", return_tensors="pt")["input_ids"]
        for _ in range(6):
            with torch.no_grad():
                following = model(ids).logits[0, -1].argmax()
            if int(following) == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
        start = len(tokenizer(f"user:{prompt}<eos>assistant:")["input_ids"])
        expected.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    writer = TransformersText(str(folder), max_new_tokens=6)
    assert writer.complete(prompts) == expected
    assert len(set(expected)) == 2
    with pytest.raises(InputError, match="no prompt got questions"):
        QuestionWriter(writer, attempts=1).write(prompts)


def test_questions_are_written_from_the_command_line(
    serve: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server = serve(lambda body, number: completion(written(CAT) if '"a cat"' in text_sent(body) else "no"))
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "questions.jsonl"
    prompts.write_text('{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n')
    arguments = ["questions", prompts, "--output", output, "--model", "m", "--endpoint", server.url, "--key-env", ""]
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert (caught.value.code, capsys.readouterr().out) == (
        0,
        "1 questions about 1 prompts\nunwritten: 1 (first: 2, " + NO_JSON + ")\n",
    )
    assert [item.prompt for item in load_questions(output).items] == ["a cat"]
    output.unlink()
    with pytest.raises(SystemExit) as caught:
        main([*(str(argument) for argument in arguments), "--style", "tifa"])
    assert (caught.value.code, "expected yes_no or choices" in capsys.readouterr().err) == (2, True)
