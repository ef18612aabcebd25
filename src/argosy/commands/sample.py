"""`argosy sample RUN [TEXT]...`: let a trained model continue texts or answer in a chat, shown as it is written."""

from __future__ import annotations

import json as json_
import os
import select
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.commands.runs import find
from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.evaluate.prompts import Asked
    from argosy.evaluate.trained import Continued, Trained

HELP = "Start here"
PLACE = 30
PATIENCE = 1.0  # seconds after which a pipe that is still empty is told of
NO_STOPS: tuple[str, ...] = ()


def sample(
    run: str | Path | None = None,
    text: str | Sequence[Any] = "",
    *,
    tokens: int = 200,
    temperature: float | None = None,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    best: bool = False,
    trust: bool = False,
    show: Callable[[str], object] = lambda piece: None,
) -> Any:
    """What the model of `run` (None = the newest) writes after `text`; `show` gets it piece by piece as it comes.

    text: a text, or the messages of a chat ([{"role": "user", "content": "..."}]): gives a text. A list of those: they are
    continued side by side, and a list comes back. temperature: 0 takes the likeliest token each time; left out, the run's own.
    top_p: only the likeliest tokens that together have so much of the probability are drawn from. stop: texts before which it
    ends. The same seed gives the same texts. best: the best checkpoint instead of the newest. trust: code that the run names
    may be imported. Refused where there is no such run or no checkpoint in it.
    """
    from argosy.evaluate.trained import Trained

    one = isinstance(text, str) or _is_chat(text)
    asked: list[Asked] = [text] if one else list(text)
    model = Trained.open(find(run), best=best, trust=trust)
    found = continued(model, asked, tokens, temperature, top_p, stop, seed, lambda number, piece: show(piece))
    return found[0].text if one else [each.text for each in found]


def continued(
    model: Trained, asked: Sequence[Asked], tokens: int, temperature: float | None, top_p: float = 1.0,
    stop: str | Sequence[str] = (), seed: int = 0,
    show: Callable[[int, str], object] = lambda number, piece: None,
) -> list[Continued]:  # fmt: skip
    """What `model` writes after each of `asked`; show(number, piece). Refused where a number or a prompt makes no sense."""
    from argosy.evaluate.prompts import prompt

    if tokens < 1 or not 0 < top_p <= 1 or (temperature is not None and not 0 <= temperature < float("inf")):
        raise Refused(
            "tokens must be at least 1, top_p above 0 and at most 1, temperature 0 or more.",
            found=f"tokens = {tokens}, top_p = {top_p}, temperature = {temperature}",
        )
    heat = model.job.observe.temperature if temperature is None else temperature
    prompts = [prompt(one, model.tokenizer, model.template, model.opening) for one in asked]
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return model.continued(prompts, tokens=tokens, temperature=heat, top_p=top_p, stops=stops, seed=seed, show=show)


def _is_chat(text: object) -> bool:
    """Whether `text` is one chat: messages, and not texts or chats."""
    return isinstance(text, Sequence) and len(text) > 0 and isinstance(text[0], Mapping)


def piped() -> str | None:
    """What was piped in, to its end, without its last line end; None where nothing was.

    A slow writer is waited for; stderr says so, for it may be a pipe to which nobody means to write.
    """
    source = sys.stdin.fileno()
    if not stat.S_ISFIFO(os.fstat(source).st_mode) and not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    if not select.select([source], [], [], PATIENCE)[0]:
        print("waiting for the text to continue on standard input; </dev/null says that none comes", file=sys.stderr)
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n") or None


class Shell:
    """One call of the command: what it was asked, and how it shows what comes."""

    def __init__(self, model: Trained, options: Mapping[str, Any], *, chat: bool, json: bool):
        self.model, self.options, self.chat, self.json = model, dict(options), chat, json

    def write(self, piece: str) -> None:
        """Show a piece of text as it comes, unless JSON is asked for."""
        from argosy.observe.text import shown

        if not self.json:
            sys.stdout.write(shown(piece, sys.stdout))
            sys.stdout.flush()

    def one(self, asked: Asked) -> Continued:
        """Continue one prompt, shown as it grows."""
        from argosy.evaluate.prompts import readable

        if isinstance(asked, str):
            self.write(readable(asked))
        [found] = continued(self.model, [asked], **self.options, show=lambda number, piece: self.write(piece))
        self.write("\n")
        return found

    def all(self, asked: Sequence[Asked]) -> None:
        """Continue all prompts; several are shown when they are done."""
        if len(asked) == 1:
            found = [self.one(asked[0])]
        else:
            found = continued(self.model, asked, **self.options)
        for number, (said, each) in enumerate(zip(asked, found, strict=True), 1):
            if self.json:
                row = {"prompt": said, "text": each.text, "tokens": each.tokens, "ended": each.ended}
                print(json_.dumps(row, ensure_ascii=False))
            elif len(asked) > 1:
                self.write(f"--- {number} of {len(asked)}\n{each.prompt.shown}{each.text}\n")

    def talk(self) -> None:
        """Ask for a text time and again; in a chat each answer becomes part of what comes next."""
        messages: list[dict[str, str]] = []
        while True:
            try:
                text = input("> ")
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if self.chat:
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": self.one(messages).text})
            else:
                self.one(text)
            self.options["seed"] += 1


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("sample", rich_help_panel=HELP)
    def command(
        run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")] = None,
        texts: Annotated[
            list[str] | None, typer.Argument(metavar="[TEXT]...", help="What the model goes on from; several at once.")
        ] = None,
        file: Annotated[
            Path | None, typer.Option(help="Prompts: a line each, or records of .jsonl or .json: texts or messages.")
        ] = None,
        chat: Annotated[bool, typer.Option("--chat", help="TEXT is what a user says in a chat.")] = False,
        tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 200,
        temperature: Annotated[
            float | None, typer.Option(min=0, help="0 takes the likeliest token; left out: the run's own.")
        ] = None,
        top_p: Annotated[
            float,
            typer.Option(min=0, max=1, help="Draw from the likeliest tokens that make up so much of the probability."),
        ] = 1.0,
        stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be given again.")] = None,
        seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
        best: Annotated[bool, typer.Option("--best", help="The best checkpoint instead of the newest.")] = False,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object a prompt.")] = False,
        trust: Annotated[bool, typer.Option("--trust", help="Import code that the run names.")] = False,
    ) -> None:
        """Let a model continue TEXT, or what is piped in; without either, ask for it."""
        from argosy.evaluate import prompts
        from argosy.evaluate.trained import Trained

        if file is not None and texts:
            raise Refused("--file and TEXT both say what to go on from.", found=str(file), do="Give one of them.")
        asked: list[Asked] = [] if file is None else prompts.read(file)
        model = Trained.open(find(run), best=best, trust=trust)
        options = {"tokens": tokens, "temperature": temperature, "top_p": top_p, "stop": stop or NO_STOPS, "seed": seed}
        shell = Shell(model, options, chat=chat, json=json)
        if not texts and not asked and sys.stdin.isatty() and sys.stdout.isatty():
            shell.talk()
            return
        said = list(texts or ())
        if not said and not asked:
            begun = piped()
            said = [begun if begun is not None else next(iter(model.job.observe.prompts), "")]
        shell.all(asked or [[{"role": "user", "content": one}] if chat else one for one in said])
