"""A wide area network on one machine: hosts in namespaces of their own, joined by one forwarder in user space."""
