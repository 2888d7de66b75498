"""`shoal api`: the swarm's model behind OpenAI's HTTP interface."""
