"""The one place that imports hivemind: quietly, and only when the network is first needed. Knows nothing of Shoal.

hivemind 1.1.12 compiles a helper with the deprecated `torch.jit.script` and logs at INFO through handlers of its own;
neither is the user's business.
"""

from __future__ import annotations

import logging
import warnings
from importlib import resources

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from google.protobuf.message import DecodeError
    from hivemind.dht.node import DHTNode
    from hivemind.dht.protocol import DHTProtocol
    from hivemind.dht.routing import DHTID, RoutingTable
    from hivemind.p2p import P2P, P2PContext, PeerID, p2p_daemon
    from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError, P2PHandlerError
    from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerInfo
    from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
    from hivemind.proto import auth_pb2, dht_pb2, p2pd_pb2
    from hivemind.utils.multiaddr import Multiaddr

logging.getLogger("hivemind").setLevel(logging.WARNING)
logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames this level for the whole process
# hivemind finds its daemon through `importlib.resources.path`, which warns at each call that it is deprecated.
p2p_daemon.path = lambda package, name: resources.as_file(resources.files(package) / name)

# What a call to another node may come to. The last two: its answer is no message, or there is none in it.
CALL_ERRORS = (
    P2PDaemonError, P2PHandlerError, OSError, EOFError, ValueError, TimeoutError, DecodeError, TypeError,
)  # fmt: skip

__all__ = [
    "CALL_ERRORS",
    "DHTID",
    "P2P",
    "DHTNode",
    "DHTProtocol",
    "Multiaddr",
    "P2PContext",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerID",
    "PeerInfo",
    "RoutingTable",
    "auth_pb2",
    "dht_pb2",
    "p2pd_pb2",
    "raise_if_failed",
    "read_pbmsg_safe",
    "write_pbmsg",
]
