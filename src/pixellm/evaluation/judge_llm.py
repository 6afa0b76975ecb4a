"""Asks a language model to judge answers: retries, a cost cap, and verdicts that are kept.

Every verdict is kept under a digest of all that it depends on: model, server, rules and text. A
second run with the same answers sends nothing, costs nothing and gives the same scores. It knows
nothing of masks; what is judged and what follows from it is in :mod:`pixellm.evaluation.judge`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from pixellm.curation.client import (
    Client,
    ClientError,
    NoReplyError,
    OpenAIClient,
    Price,
    Reply,
    Request,
    UnanswerableError,
    estimate_tokens,
    price_of,
    public_url,
    schema_of,
)
from pixellm.curation.photos import Photo
from pixellm.evaluation.judge import (
    HIGHEST,
    LOWEST,
    Judge,
    JudgeItem,
    JudgeProgress,
    JudgeSettings,
    Ratings,
    SimilarityJudge,
)
from pixellm.evaluation.judge_cache import VerdictCache

ATTEMPTS = 6
"""Times that a request is sent, waits in between, before an answer stays without a verdict."""

REPROMPTS = 2
"""Times that a model is told what was wrong with its reply."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds; each wait is twice the one before, unless the server says how long."""

MAX_CONSECUTIVE_FAILURES = 16
"""Requests in a row that get no reply in all attempts, before the server is given up."""

_EXPECTED_OUTPUT_TOKENS = 300
_NO_PHOTO = Photo(id="", file_name="", size=(1, 1))
_SCHEMA = schema_of(
    {
        "ratings": {
            "type": "array",
            "items": schema_of({"object": {"type": "integer"}, "score": {"type": "integer"}}),
        }
    }
)


class CostCapReachedError(ValueError):
    """The judge's money is spent; what is rated so far is in the cache."""


class LLMJudge:
    """Rates answers with a language model.

    Args:
        connect: makes the client when the first answer is not in the cache, so that a complete
            cache needs no key and no server.
        model: the model's name.
        server: what the cache calls the server.
        price: of the model's tokens.
        cache: of verdicts.
        max_cost: USD that all replies in the cache may cost; None for no limit.
        workers: requests at the same time.
        wait: waits for seconds between attempts; by default until then or until all is stopped.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        model: str,
        server: str,
        price: Price,
        cache: VerdictCache,
        max_cost: float | None = None,
        workers: int = 8,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.name = model
        self.cache = cache
        self._connect = connect
        self._server = server
        self._price = price
        self._max_cost = max_cost
        self._workers = workers
        self._client: Client | None = None
        self._mutex = threading.Lock()
        self._reserved = 0.0
        self._num_failures = 0
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._system = load_rules()

    def rate(
        self, items: Sequence[JudgeItem], progress: JudgeProgress | None = None
    ) -> list[Ratings]:
        """Rate every item; equal items are asked about once.

        Returns:
            Ratings in order; None where the model gave no usable verdict in all attempts. Those
            are not kept, so that the next run asks again.

        Raises:
            CostCapReachedError: the cap leaves no room for a further request.
            OSError: no request can be served (a wrong key, model or address, or a server
                that failed :data:`MAX_CONSECUTIVE_FAILURES` times in a row), or the cache fails.
        """
        texts = {item: self._prompt(item) for item in items if item.is_judged}
        found: dict[str, dict[int, float] | None] = {}
        missing = []
        for text in dict.fromkeys(texts.values()):
            found[text] = self.cache.get(self._key(text))
            if found[text] is None:
                missing.append(text)
        numbers = {text: _numbers(item) for item, text in texts.items()}
        for text, verdict in self._ask_all(missing, numbers, len(found), progress):
            found[text] = verdict
        return [self._ratings(item, found.get(texts.get(item, ""))) for item in items]

    def _ask_all(
        self,
        texts: Sequence[str],
        numbers: dict[str, list[int]],
        total: int,
        progress: JudgeProgress | None,
    ) -> Iterator[tuple[str, dict[int, float] | None]]:
        """Verdicts as they come; the first failure that concerns all requests ends it."""
        self._stopped.clear()
        done = total - len(texts)
        if progress is not None:
            progress(done, total, self.cache.spent())
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            futures = {pool.submit(self._ask_one, text, numbers[text]): text for text in texts}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    done += 1
                    if progress is not None:
                        progress(done, total, self.cache.spent())
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _ask_one(self, text: str, numbers: list[int]) -> dict[int, float] | None:
        """A verdict, unless another request has shown that there is no point in asking."""
        if self._stopped.is_set():
            return None
        try:
            return self._ask(text, numbers)
        except BaseException:
            self._stopped.set()
            raise

    def _ask(self, text: str, numbers: list[int]) -> dict[int, float] | None:
        """The verdict on one answer, through bad replies; None where there was none."""
        turns: tuple[tuple[str, str], ...] = (("user", text),)
        for _ in range(1 + REPROMPTS):
            reply = self._complete(turns)
            if reply is None:
                return None
            try:
                verdict = read_ratings(reply.text, numbers)
            except ValueError as error:
                complaint = f"{error} Reply again, with the JSON object alone."
                turns = (*turns, ("assistant", reply.text), ("user", complaint))
                continue
            self.cache.put(self._key(text), verdict)
            return verdict
        return None

    def _complete(self, turns: tuple[tuple[str, str], ...]) -> Reply | None:
        """One reply, through failures of server and network; None where none came."""
        request = Request(0, "judge", self._system, turns, (), _SCHEMA, _NO_PHOTO, "")
        pause = FIRST_WAIT
        for attempt in range(ATTEMPTS):
            if self._stopped.is_set():
                return None
            try:
                with self._reserve(request):
                    reply = self.connect().complete(request)
                    self.cache.add_cost(self._price.of(reply))
                self._num_failures = 0
                return reply
            except UnanswerableError:
                return None
            except NoReplyError as error:
                if attempt == ATTEMPTS - 1:
                    self._count_failure(error)
                    return None
                self._wait(pause if error.retry_after is None else error.retry_after)
                pause = min(2 * pause, LONGEST_WAIT)
        return None

    def _count_failure(self, error: NoReplyError) -> None:
        with self._mutex:
            self._num_failures += 1
            if self._num_failures >= MAX_CONSECUTIVE_FAILURES:
                raise ClientError(
                    f"The judge at {self._server} has left {self._num_failures} requests in a row "
                    f"without a reply ({error}); check --base-url and run again, nothing rated so "
                    "far is asked twice."
                )

    @contextmanager
    def _reserve(self, request: Request) -> Iterator[None]:
        """Sets the request's likely cost aside while it is under way."""
        guess = Reply("", "", estimate_tokens(request), _EXPECTED_OUTPUT_TOKENS)
        likely = self._price.of(guess)
        with self._mutex:
            spent = self.cache.spent() + self._reserved
            if self._max_cost is not None and spent + likely > self._max_cost:
                raise CostCapReachedError(
                    f"The judge has cost {self.cache.spent():.4f} USD and the next reply would "
                    f"pass the cap of {self._max_cost:g}; raise it and run again, nothing rated "
                    "so far is asked twice."
                )
            self._reserved += likely
        try:
            yield
        finally:
            with self._mutex:
                self._reserved -= likely

    def connect(self) -> Client:
        """The client, made when first asked for.

        Raises:
            ValueError: the server needs a key and the environment has none.
            ImportError: the extra ``curate`` is not installed.
        """
        with self._mutex:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _prompt(self, item: JudgeItem) -> str:
        return f"Question: {item.question.strip()}\nAnswer: {item.described_answer().strip()}"

    def _key(self, text: str) -> str:
        content = json.dumps([self.name, self._server, self._system, text], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @staticmethod
    def _ratings(item: JudgeItem, verdict: dict[int, float] | None) -> Ratings:
        if not item.is_judged:
            return (LOWEST,) * len(item.spans)
        if verdict is None:
            return None
        return tuple(verdict.get(number, LOWEST) for number in range(1, len(item.spans) + 1))


def _numbers(item: JudgeItem) -> list[int]:
    """Numbers of the objects that the model is asked about."""
    return [n for n, text in enumerate(item.descriptions, start=1) if text is not None]


def load_rules() -> str:
    """What the model is told before every answer."""
    path = resources.files("pixellm.evaluation").joinpath("prompts", "judge.txt")
    return path.read_text(encoding="utf-8").strip()


def read_ratings(text: str, numbers: Sequence[int]) -> dict[int, float]:
    """Rating by number of object, from a model's reply.

    Args:
        text: the reply; words and a code fence around the JSON object are passed over.
        numbers: the objects that must be rated, each once.

    Raises:
        ValueError: says to the model what is wrong.
    """
    match = re.search(r"\{.*\}", text, flags=re.DOTALL)
    try:
        rows = json.loads(match[0] if match else text)["ratings"]
        pairs = [(row["object"], row["score"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            'This was not a JSON object of the form {"ratings": [{"object": 1, "score": 7}]}.'
        ) from None
    for number, score in pairs:
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not LOWEST <= score <= HIGHEST:
            raise ValueError(f"The score of object {number!r} is {score!r}, not one from 1 to 10.")
    if sorted(str(number) for number, _ in pairs) != sorted(map(str, numbers)):
        raise ValueError(f"The objects to rate, each once, are {', '.join(map(str, numbers))}.")
    return {int(number): float(score) for number, score in pairs}


def open_judge(settings: JudgeSettings) -> Judge | None:
    """Open the judge of the settings; None for none.

    Where a language model's cache is empty something must be asked, so a missing key shows here,
    before hours of answering.

    Raises:
        ValueError: the price of a hosted model is not known, or its key is missing.
        OSError: the cache can't be opened.
        ImportError: the extra ``curate`` is not installed.
    """
    if settings.kind == "none":
        return None
    return _open_llm_judge(settings) if settings.kind == "llm" else SimilarityJudge()


def _open_llm_judge(settings: JudgeSettings) -> LLMJudge:
    price = (
        Price(*settings.price) if settings.price else price_of(settings.model, settings.base_url)
    )

    def connect() -> Client:
        return OpenAIClient(
            settings.model,
            images=Path(),
            base_url=settings.base_url,
            text_only=True,
            timeout=settings.timeout,
        )

    judge = LLMJudge(
        connect,
        settings.model,
        public_url(settings.base_url),
        price,
        VerdictCache(settings.cache),
        settings.max_cost,
        settings.workers,
    )
    if judge.cache.is_empty():
        judge.connect()
    return judge
