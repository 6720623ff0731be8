"""Threads of lanes whose messages have to wait are woken by news."""

from __future__ import annotations

import threading

from zoonet.net.lanes.incoming import News

LONG_S = 60.0


def test_news_wake_whoever_waits() -> None:
    news = News()
    waiting = threading.Thread(target=news.wait, args=(news.number, LONG_S))
    waiting.start()
    news.tell()
    waiting.join(LONG_S / 2)
    assert not waiting.is_alive()


def test_news_that_came_before_the_wait_are_not_missed() -> None:
    news = News()
    seen = news.number
    news.tell()
    waiting = threading.Thread(target=news.wait, args=(seen, LONG_S))
    waiting.start()
    waiting.join(LONG_S / 2)
    assert not waiting.is_alive()


def test_without_news_a_wait_ends_by_itself() -> None:
    news = News()
    waiting = threading.Thread(target=news.wait, args=(news.number, 0.01))
    waiting.start()
    waiting.join(LONG_S / 2)
    assert not waiting.is_alive()
