"""`zoonet demo`: several real peers on this machine train one model together."""

from peers.demo.story import DemoOptions, main

__all__ = ["DemoOptions", "main"]
