"""The pages that `shoal api` serves: chat and swarm, without outside resources and without a build step."""
