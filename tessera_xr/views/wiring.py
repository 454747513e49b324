"""What binds widgets to a session: who is told of what, errors shown instead of swallowed, slow work off the way."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from html import escape
from typing import Any

import ipywidgets as widgets

from tessera_xr._warn import gathered_warnings
from tessera_xr.errors import TesseraError
from tessera_xr.views.session import Session

logger = logging.getLogger(__name__)
TOPICS = ("layers", "query", "threshold", "labels", "head", "time", "mode", "place", "view")


class Wiring:
    """A session and the widgets around it.

    Parameters
    ----------
    session : Session
        What they show.
    background : bool, default True
        Whether slow work runs in a thread; without, in the caller's, as tests want it.
    """

    def __init__(self, session: Session, *, background: bool = True) -> None:
        self.session, self.background = session, background
        self.status = widgets.HTML()
        self.status.add_class("tessera-status")
        self._listeners: dict[str, list[Callable[[], object]]] = defaultdict(list)
        self._tickets: dict[str, int] = defaultdict(int)
        self._workers = ThreadPoolExecutor(1, "tessera-explorer") if background else None
        self._lock, self._turn = threading.Lock(), threading.RLock()

    def on(self, topics: str, listener: Callable[[], object]) -> None:
        """Call `listener` whenever one of some topics (in one string) is told of."""
        for topic in topics.split():
            assert topic in TOPICS, topic
            self._listeners[topic].append(listener)

    def tell(self, topics: str) -> None:
        """Tell the listeners of some topics, each once."""
        called = dict.fromkeys(listener for topic in topics.split() for listener in self._listeners[topic])
        for listener in called:
            self.run(listener)

    def say(self, text: str, kind: str = "note") -> None:
        """Show a line to the user; kind "note", "work" or "error"."""
        label = {"error": "Error: ", "work": ""}.get(kind, "")
        role = "alert" if kind == "error" else "status"
        self.status.value = f'<div role="{role}" class="tessera-{kind}">{label}{escape(text)}</div>'

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run a callback, showing what goes wrong and keeping it in `session.errors`; returns None then.

        One at a time: JupyterLab hands messages of widgets to several threads.
        """
        with self._turn:
            return self._attempt(work, *args)

    def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            with gathered_warnings() as noted:
                done = work(*args)
            for message in noted:
                self.say(message)
        except TesseraError as error:
            self._fail(str(error), error)
        except Exception as error:  # whatever it is, ipywidgets would swallow it
            logger.exception("in the explorer")
            self._fail(f"{type(error).__name__}: {error}", error)
        else:
            return done
        return None

    def _fail(self, message: str, error: Exception) -> None:
        self.session.errors.append(message)
        logger.info("%s", message, exc_info=error)
        self.say(message, "error")

    def guard(self, callback: Callable[..., Any]) -> Callable[..., None]:
        """Return a callback that widgets may call with anything; it is called without, its errors shown."""

        @wraps(callback)
        def guarded(*_: Any, **__: Any) -> None:
            self.run(callback)

        return guarded

    def later(self, name: str, work: Callable[[], Any], then: Callable[[Any], object], saying: str = "") -> None:
        """Run slow work off the event path, then `then` with its result: of several under one name, the latest wins."""
        with self._lock:
            self._tickets[name] += 1
            ticket = self._tickets[name]
        if saying:
            self.say(saying, "work")

        def job() -> None:
            if self._tickets[name] != ticket:  # another came before this one began
                return
            found = self._attempt(work)  # not in turn: clicks go on meanwhile
            if self._tickets[name] == ticket and found is not None:
                self.run(then, found)

        if self._workers is None:
            job()
        else:
            self._workers.submit(job)

    def wait(self) -> None:
        """Wait for all slow work that was asked for."""
        if self._workers is not None:
            self._workers.submit(lambda: None).result()

    def close(self) -> None:
        """Drop what hasn't begun."""
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
