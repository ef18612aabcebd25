"""What planning must know of the prepared text: five numbers. `data` makes them, `plan` reads them; knows neither."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreparedFacts:
    """The size of the prepared text. Tokens include one end mark a document."""

    vocabulary: int  # the tokenizer's ids, the end mark among them
    tokens: int  # of the documents that are trained on: one epoch
    documents: int  # trained on
    held_out_documents: int
    bytes_per_token: float  # UTF-8 bytes of all text / all tokens
