"""zoonet: train AI models together, over the open internet, with nobody in charge."""

__version__ = "0.1.0"
