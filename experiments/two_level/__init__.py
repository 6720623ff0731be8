"""Peers of a site that average often, and sites that average rarely."""
