"""`shoal chat`: arguments in, a conversation with a model on the terminal or through a pipe; knows no protocol."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.blocks.choices import DTYPES
from shoal.blocks.formats import FORMS
from shoal.client.cli.arguments import add_sampling, add_speculation
from shoal.client.cli.surroundings import utf8
from shoal.client.cli.terminal import gap_teller, quiet_libraries
from shoal.dht.arguments import Parser, add_join, file, seconds, whole
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from shoal.client.cli.dialogue import Dialogue

EXAMPLE = "shoal chat --join home --system 'Answer briefly.'"
SUMMARY = """\
Talk with a model through a swarm. /help lists what can be done in between: begin anew, take back, try again, save.

Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves. A line that ends with \\ goes on in the next one, and
three quotes begin and end a text of many lines. What was typed is kept for the next start.

From a pipe every line is a message: answers come on stdout, all else on stderr, and the first error ends it."""
TERMINATED = 143


def chat(argv: list[str]) -> int:
    """Talk with a model through a swarm."""
    arguments = _parse(argv)
    invite = find_invite(arguments.join)
    quiet_libraries()
    signal.signal(signal.SIGTERM, _leave)
    with at_once():
        from shoal.blocks.hub_progress import downloads
        from shoal.client.cli.conversation import Conversation, Voice
        from shoal.client.cli.talk import open_talk
        from shoal.client.local import load_model

    with downloads() as progress:
        model = load_model(arguments.model or invite.model, arguments.dtype, arguments.revision, progress)
    dialogue = _dialogue(arguments, model.checkpoint.path)
    terms = {"background": arguments.background, "activations": arguments.activations}
    with open_talk(model, invite, arguments.wait, gap_teller(), **terms) as talk:
        voice = Voice(json=arguments.json, quiet=arguments.quiet, interactive=sys.stdin.isatty())
        return Conversation(talk, dialogue, voice, arguments.model or invite.model).run()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("chat", SUMMARY, EXAMPLE)
    add_join(parser)
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument("--revision", metavar="R", help="the hub's branch, tag or commit, or a directory's fingerprint")
    parser.add_argument(
        "--system", type=utf8, default="", metavar="TEXT", help="what the model is told before the conversation"
    )
    parser.add_argument("--load", type=file, metavar="FILE", help="go on with a conversation that /save wrote")
    parser.add_argument("--max-new-tokens", type=whole(1), default=512, metavar="N", help="in an answer (default 512)")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long for missing blocks")
    parser.add_argument("--dtype", choices=DTYPES, help="of the ends and on the wire (default: the model's own)")
    parser.add_argument(
        "--activations", choices=("auto", *FORMS), default="auto",
        help="how hidden states travel (default auto: as they are, or 16-bit ones as int8 over slow lines)",
    )  # fmt: skip
    parser.add_argument("--background", action="store_true", help="wait behind all that others ask of the peers")
    add_speculation(parser)
    parser.add_argument("--quiet", action="store_true", help="no line about peers and speed below the answers")
    parser.add_argument("--json", action="store_true", help="each answer as one JSON object a line")
    add_sampling(parser, suggested=True)
    return parser.parse_args(argv)


def _dialogue(arguments: argparse.Namespace, folder: Path) -> Dialogue:
    from shoal.client.cli.dialogue import Dialogue
    from shoal.client.cli.talk import suggested
    from shoal.client.generation import GenerationOptions

    given = {
        name: getattr(arguments, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        if getattr(arguments, name) is not None
    }
    sampling = replace(suggested(folder), **given)
    options = GenerationOptions(arguments.max_new_tokens, sampling, speculate=arguments.speculate)
    dialogue = Dialogue(arguments.system, options=options)
    if arguments.load is not None:
        dialogue.load(arguments.load)
    return dialogue


def _leave(*_: object) -> None:
    raise SystemExit(TERMINATED)
