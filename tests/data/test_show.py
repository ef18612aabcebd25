from collections.abc import Callable
from pathlib import Path

from argosy.data.shards import Shards
from argosy.data.show import document_name, lines, stretches
from argosy.data.tokenizer import Bytes
from argosy.run.ledger import Ledger

FIXTURE = Path(__file__).parent / "fixtures" / "prepared-1"


def test_stretches_are_in_the_order_of_the_batch(make_shards: Callable[..., Shards]) -> None:
    shards = make_shards([40, 10, 25, 3], (1,))
    ledger = Ledger.start(data__order=2, batch__sequence=8, batch__tokens=64)
    found = [stretch for step in (1, 2) for stretch in stretches(step, 1, ledger, shards)]
    assert sum(stretch.end - stretch.begin for stretch in found) == 128
    first = {stretch.document: stretch for stretch in reversed(found)}
    assert set(first) == {"folder/0.txt", "folder/2.txt", "folder/3.txt"}
    assert found[0].row() == {"source": "made", "document": found[0].document, "begin": 0, "end": found[0].end}


def test_text_is_shown_with_its_place() -> None:
    shards = Shards(FIXTURE)
    ledger = Ledger.start(data__order=2, batch__sequence=10, batch__tokens=20)
    shown = "\n".join(lines(1, 1, ledger, shards, Bytes()))
    assert "── sequence 1, place 0: poems/a.txt, tokens 0 to 10 of 16\nRoses are \n" in shown
    assert "── sequence 2, place 0: poems/a.txt, tokens 10 to 16 of 16\nred.\n" in shown
    assert "Violets" not in shown
    assert document_name(0, shards) == "poems/a.txt"
