"""Jobs: their life, their catalog on the record store, and which of them fit a peer."""

from zoonet.jobs.catalog import Catalog
from zoonet.jobs.fit import ProviderPolicy, misfit, spec_misfit
from zoonet.jobs.lifecycle import IllegalTransition, JobPhase, JobState, advance
from zoonet.jobs.view import JobRecords, JobView, Losses, PeerView, ResultView, fold, rank

__all__ = [
    "Catalog",
    "IllegalTransition",
    "JobPhase",
    "JobRecords",
    "JobState",
    "JobView",
    "Losses",
    "PeerView",
    "ProviderPolicy",
    "ResultView",
    "advance",
    "fold",
    "misfit",
    "rank",
    "spec_misfit",
]
