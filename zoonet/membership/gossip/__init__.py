"""Full membership by gossip: every peer holds every peer's and every job's newest signed record.

Unit: a signed, expiring record; a table maps (author, kind, key) to the newest. Looking up a peer
or a job is a local read. What has not come by yet is asked of the key's three keepers (1 RTT), then
of three others (2 RTT). Bounded in records, in bytes and per author; full: a keyed sample stays.

* **Exchange.** Every `tick_s` a peer calls one neighbour, says the ids of what it learned in the
  last `hot_s`, and gets what it lacks; whoever is called lacks something and calls back for it.
  Nothing is sent to a peer that has it. A record crosses 1,000 peers in seven ticks.
* **Keepers.** Its author tells a record at once to its neighbours and to the three peers behind
  the key's place on the ring of hashed ids: those are asked first. So look-ups do not wait for
  gossip, and gossip can be slow and cheap.
* **Reconcile.** Once a `reconcile_s` a call also carries 256 bucket sums of all record ids; the
  answer lists the ids in buckets that differ, and only differences are fetched and handed over. A
  newcomer is the same with an empty table: ids from three contacts (1 RTT), then pages from all of
  them at once (2 RTT). Two swarms that touch in one pair of peers merge by it.
* **Neighbours.** The three ring predecessors that a peer watches, and four drawn uniformly from
  the verified table, one renewed every `rotate_s`: shouting does not help to get chosen.
* **Death.** Records live twelve hours: there are no heartbeats. A watcher that gets no answer
  thrice signs `Gone`; two of the eight ring successors make a verdict, one's own is a goodbye. An
  accused peer that lives signs a newer record: its own word beats every accusation. A watcher
  whose calls to others fail as well suspects itself and accuses nobody; after five minutes of
  that it knows that it knows nobody, and joins anew.

Bytes a second at 1,000 peers, 20 %/h churn, both directions (record 630 B, Gone 190 B; measured: a
call costs c = 1,100 B beside its payload, a connection 10 kB): calls 2/4 s x c = 550; ids of news
45; new and renewed records 0.1/s x 630 x 2 = 120; Gone 0.1/s x 190 x 2 = 40; reconciling 2/60 s x
(3.3 kB + c) = 150; newcomers' tables 0.056/s x 1 MB x 2 / 1,000 = 110; new connections 100: 1,110
of the 2,000 allowed (the simulation counts 1,250). At 10,000 calls cost the same, what follows the
number of records grows tenfold, and reconciling is done more rarely: about four times as much
(simulated). A second level would save some of it and could be attacked.

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
