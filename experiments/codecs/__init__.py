"""Throughput and bytes of every codec."""
