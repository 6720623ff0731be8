"""Full membership by gossip: every peer holds every peer's and every job's newest signed record.

Unit: a signed, expiring record; a table maps (author, kind, key) to the newest. Looking up a peer
or a job is then a local read; what is too new to have come by is asked of three peers (1 RTT) and
three more (2 RTT). Bounded in records, in bytes and per author; full: a keyed random sample stays.

* **Exchange.** Every `tick_s` a peer calls one neighbour: ids of what it learned lately, new
  records in full (once), and gets what is new there. Push while young, pull later: a record
  crosses 1,000 peers in about ten ticks and each link about once.
* **Reconcile.** Once a `reconcile_s` the call also carries 256 bucket sums of all record ids;
  the answer lists the ids of buckets that differ, and only differences are fetched and handed
  over. A newcomer is the same with an empty table: ids from three contacts (1 RTT), then pages
  from all of them at once (2 RTT). Two swarms that touch in one pair of peers merge by it.
* **Neighbours.** The three ring predecessors that a peer watches, by the hash of ids, and four
  drawn uniformly from the verified table, one renewed every `rotate_s`: shouting does not help.
* **Death.** Records live four hours: there are no heartbeats. A watcher that gets no answer thrice
  signs `Gone`; two of the eight ring successors make a verdict, one's own `Gone` is a goodbye.
  An accused peer that lives signs a newer record: its own word beats every accusation.

Bytes at 1,000 peers, 20 %/h churn, both directions (a record 600 B, a Gone 170 B, a call's
overhead c = 900 B): calls 2/4 s x c = 450; new and renewed records 0.16/s x 600 x 2 x 1.6 = 310;
Gone 0.1/s x 170 x 2 x 1.6 = 55; reconciling 2/60 s x (2.4 kB + c) = 110; newcomers' tables
0.06/s x 600 kB x 2 / 1,000 = 70: about 1.0 kB/s of the 2 kB/s allowed. At 10,000 the calls stay as
they are and the rest grows tenfold where it follows N: full membership is still the cheapest
design (6 MB a table), so there is no second level to attack or to maintain.

`machine` is pure: (state, event, time, seed) -> effects. `Registry` drives it over a `Transport`.
"""

from zoonet.membership.gossip.config import GossipConfig, TableLimits
from zoonet.membership.gossip.entries import Entries, PlainEntries
from zoonet.membership.gossip.item import Gone, Item, MemberRecord, member_key
from zoonet.membership.gossip.machine import Accuse, Call, Effect, Machine, Renew
from zoonet.membership.gossip.messages import Ask, Told
from zoonet.membership.gossip.registry import Registry
from zoonet.membership.gossip.store import RegistryRecords
from zoonet.membership.gossip.table import Table

__all__ = [
    "Accuse",
    "Ask",
    "Call",
    "Effect",
    "Entries",
    "Gone",
    "GossipConfig",
    "Item",
    "Machine",
    "MemberRecord",
    "PlainEntries",
    "Registry",
    "RegistryRecords",
    "Renew",
    "Table",
    "TableLimits",
    "Told",
    "member_key",
]
