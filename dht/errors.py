"""Every error the directory raises; the text is a sentence for the user. Knows nothing of the rest.

DhtError
├── IdentityError   a key file cannot be read, written or understood; a peer id is not an Ed25519 one
├── RecordError     a signed record is malformed, too large, forged, expired or too far ahead
├── InviteError     an invite token is damaged, or the secret in it is not the swarm's
├── HostError       the libp2p daemon does not start, its port is taken, or it died
└── JoinError       no bootstrap node answers, or another live peer uses our identity
"""


class DhtError(Exception):
    """Base of all errors of this package."""


class IdentityError(DhtError):
    """A key file or peer id is unusable."""


class RecordError(DhtError):
    """A record must not be believed, stored or sent."""


class InviteError(DhtError):
    """An invite token is damaged, or does not open what it should."""


class HostError(DhtError):
    """The libp2p daemon is not there."""


class JoinError(DhtError):
    """The swarm's directory cannot be joined."""
