"""A job's text as it is generated: every token once and in order, whatever breaks on the way."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts
from farm.settings import Settings
from tests.api.conftest import WEB, Event, Serve, follow, json_of, parse, serving, submit
from tests.conftest import wait_until
from tests.farmhand import VOCAB, Farmhand, text_of


def indices(events: list[Event]) -> list[int]:
    """How many tokens a client has after each event."""
    return [int(str(event.id).removesuffix(".end")) for event in events if event.id is not None]


def test_a_stream_is_the_whole_text(serve: Serve, hand: Farmhand, jobs: Jobs) -> None:
    """Tokens as they come, then the end with what came last; the pieces are the job's text."""
    hand.tokens_per_beat = 1
    with serve() as api, hand:
        job = submit(jobs, max_tokens=40)
        heard = follow(api.url, job)
    assert heard.text() == text_of("A goat", 40)
    assert indices(heard.events) == sorted(set(indices(heard.events)))
    assert [event.name for event in heard.events] == ["tokens"] * (len(heard.events) - 1) + ["end"]
    end = json_of(heard.events[-1])
    assert (end["id"], end["state"], end["index"], end["error"]) == (job, "succeeded", 40, None)
    assert end["usage"]["completion_tokens"] == 40
    assert len(heard.events) > 5


def test_a_cut_stream_goes_on_where_it_was(serve: Serve, hand: Farmhand, jobs: Jobs) -> None:
    """From each id that a client may have got last, what follows is the rest, to the letter; after the end, nothing."""
    hand.tokens_per_beat = 2
    with serve() as api, hand:
        job = submit(jobs, max_tokens=16)
        heard = follow(api.url, job)
        for count in range(len(heard.events)):
            first = heard.events[:count]
            rest = follow(api.url, job, after=first[-1].id if first else None)
            texts = [json_of(event)["text"] for event in (*first, *rest.events)]
            assert "".join(texts) == text_of("A goat", 16)
        last = heard.events[-1].id
        answer = WEB.get(f"{api.url}/v1/jobs/{job}/events", headers={"Last-Event-ID": str(last)})
    assert last == "16.end"
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_stream_survives_the_death_of_its_worker(serve: Serve, api_settings: Settings, jobs: Jobs) -> None:
    """The connection stays, and the next worker's tokens follow the first one's."""
    with serve() as api:
        job = submit(jobs, max_tokens=30)
        with ThreadPoolExecutor() as threads:
            stream = threads.submit(follow, api.url, job)
            with Farmhand(api_settings, name="first", tokens_per_beat=1, die_at=10) as first:
                wait_until(lambda: not first.is_alive, why="the first worker to die")
            with Farmhand(api_settings, name="second", tokens_per_beat=1):
                heard = stream.result()
    assert heard.text() == text_of("A goat", 30)
    assert indices(heard.events)[-1] == 30
    assert jobs.view(job).attempt == 2


def test_a_stream_never_goes_on_with_another_revisions_tokens(serve: Serve, api_settings: Settings, jobs: Jobs) -> None:
    """When the model was changed, whoever has read some gets an error with its code, also with a last id from before;
    a new stream has the whole answer, and its ids go on being good."""

    def at(revision: str, **how: int) -> Farmhand:
        return Farmhand(api_settings, name=revision, facts=ModelFacts("tiny-bloom", 2_048, VOCAB, revision, ""), **how)

    with serve() as api, ThreadPoolExecutor() as threads:
        job = submit(jobs, max_tokens=30)
        stream = threads.submit(follow, api.url, job)
        with at("old", tokens_per_beat=1, die_at=10) as old:
            wait_until(lambda: not old.is_alive, why="the first worker to die")
        with at("new", tokens_per_beat=1):
            heard = stream.result()
            wait_until(lambda: jobs.view(job).state.is_terminal, why="the job to end")
        whole = follow(api.url, job)
        old_id = str(heard.events[-2].id)
        late = follow(api.url, job, after=old_id)
        rest = follow(api.url, job, after="12r1")
    assert [event.name for event in heard.events][-1] == "error"
    assert [json_of(events.events[-1])["error"]["code"] for events in (heard, late)] == ["answer_restarted"] * 2
    assert len(late.events) == 1
    assert 0 < int(old_id) <= 30
    assert whole.text() == text_of("A goat", 30)
    assert whole.events[-1].id == "30r1.end"
    assert text_of("A goat", 30).endswith(rest.text())
    assert rest.text() == text_of("A goat", 30)[len(text_of("A goat", 12)) - 1 :]


def test_a_stopping_server_sends_its_clients_to_the_next(api_settings: Settings, hand: Farmhand, jobs: Jobs) -> None:
    """Streams and long polls end at once with an answer that says how to go on; another server goes on from there."""
    hand.tokens_per_beat = 1
    texts: list[str] = []
    with hand, ThreadPoolExecutor() as threads:
        job = submit(jobs, max_tokens=500)
        waiting = submit(jobs, max_tokens=1_000, priority="low")
        with serving(api_settings) as api:
            poll = threads.submit(WEB.get, f"{api.url}/v1/jobs/{waiting}", params={"wait": 30})
            stream = threads.submit(follow, api.url, job)
            wait_until(lambda: api.listeners() == 2, why="both to listen")
            wait_until(lambda: len(jobs.view(job).text) > 50, why="some text")
            hand.tokens_per_beat = 0
            began = time.monotonic()
        assert time.monotonic() - began < 5
        heard = stream.result()
        assert poll.result().json()["state"] in ("queued", "running")
        assert heard.events[-1].name == "resume"
        last = json_of(heard.events[-1])["last_event_id"]
        assert last == str(indices(heard.events)[-1])
        texts.append(heard.text())
        hand.tokens_per_beat = 1_000_000
        with serving(api_settings) as api:
            texts.append(follow(api.url, job, after=last).text())
    assert "".join(texts) == text_of("A goat", 500)


def test_a_quiet_stream_is_kept_open(serve: Serve, jobs: Jobs) -> None:
    """A job that waits says nothing; comments keep proxies from closing the connection."""
    with serve(heartbeat_s=0.05) as api:
        job = submit(jobs)
        comments = 0
        with WEB.stream("GET", f"{api.url}/v1/jobs/{job}/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            for event in parse(answer.iter_lines()):
                assert event is None
                comments += 1
                if comments == 3:
                    break


def test_nobody_is_left_on_the_list(serve: Serve, hand: Farmhand, jobs: Jobs) -> None:
    """A client that goes away costs nothing from then on: the places that it took are free again."""
    with serve(max_streams=3) as api:
        job = submit(jobs)
        for _ in range(3):
            clients = [httpx2.Client(verify=False, base_url=api.url) for _ in range(3)]
            streams = [client.stream("GET", f"/v1/jobs/{job}/events") for client in clients]
            for stream in streams:
                assert stream.__enter__().status_code == 200
            full = WEB.get(f"{api.url}/v1/jobs/{job}", params={"wait": 1})
            assert (full.status_code, full.json()["error"]["code"]) == (503, "too_many_streams")
            assert int(full.headers["retry-after"]) >= 1
            for stream, client in zip(streams, clients, strict=True):
                stream.__exit__(None, None, None)
                client.close()
            wait_until(lambda: _has_room(api.url, job), why="the places to be free")


def _has_room(url: str, job: str) -> bool:
    with WEB.stream("GET", f"{url}/v1/jobs/{job}/events") as answer:
        return answer.status_code == 200


def test_a_job_that_fails_ends_its_stream(serve: Serve, api_settings: Settings, jobs: Jobs) -> None:
    """The end of a stream says what went wrong; a cancelled job's says that."""
    with serve() as api, Farmhand(api_settings, fail_prompts=frozenset({"A wolf"})):
        failed = follow(api.url, submit(jobs, "A wolf", max_tokens=4)).events[-1]
    assert (json_of(failed)["state"], json_of(failed)["error"]["code"]) == ("failed", "model_error")
    with serve() as api, ThreadPoolExecutor() as threads:
        job = submit(jobs)
        stream = threads.submit(follow, api.url, job)
        WEB.post(f"{api.url}/v1/jobs/{job}/cancel")
        assert json_of(stream.result().events[-1])["state"] == "cancelled"


def test_token_ids_come_if_asked_for(serve: Serve, hand: Farmhand, jobs: Jobs) -> None:
    """return_token_ids holds for streams, too."""
    with serve() as api, hand:
        with_ids = follow(api.url, submit(jobs, max_tokens=4, return_token_ids=True))
        without = follow(api.url, submit(jobs, max_tokens=4))
    assert [token for event in with_ids.events for token in json_of(event)["token_ids"]] == [0, 1, 2, 3]
    assert all("token_ids" not in json_of(event) for event in without.events)


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9999999999", "1.end.end", "١"])
def test_an_odd_last_event_id_is_refused(serve: Serve, jobs: Jobs, last: str) -> None:
    """A client that resumes from nonsense is told so."""
    with serve() as api:
        job = submit(jobs)
        headers = [(b"Last-Event-ID", last.encode())]
        answer = WEB.get(f"{api.url}/v1/jobs/{job}/events", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_many_streams_share_one_reader(serve: Serve, api_settings: Settings, jobs: Jobs) -> None:
    """A hundred clients of a dozen jobs each get all of it, by one thread that reads for all of them."""
    with serve() as api, ThreadPoolExecutor(100) as threads:
        ids = [submit(jobs, f"goat {n}", max_tokens=30) for n in range(12)]
        streams = [(n % 12, threads.submit(follow, api.url, ids[n % 12])) for n in range(100)]
        with Farmhand(api_settings, tokens_per_beat=1):
            texts = [(n, stream.result().text()) for n, stream in streams]
        readers = [thread for thread in threading.enumerate() if thread.name == "farm-events"]
    assert all(text == text_of(f"goat {n}", 30) for n, text in texts)
    assert len(readers) <= 1
