"""The vote: what one rank brings, what all get."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from argosy.prove.pool import Pool

HERE = str(Path(__file__))


def test_alone_the_vote_is_ones_own() -> None:
    import torch

    from argosy.train.vote import Agree, Asks

    held = tuple(float(number) for number in range(8))
    vote = Agree(asks=lambda: Asks(save=True, held=held))(torch.tensor(3.0), torch.tensor(4.0))
    assert (vote.loss, vote.norm, vote.stop, vote.save, vote.held) == (3.0, 2.0, 0.0, 1.0, held)
    assert vote.finite


@pytest.mark.parametrize("loss, norm2", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_what_is_no_number_is_not_finite(loss: float, norm2: float) -> None:
    from argosy.train.vote import Vote

    assert not Vote(loss, norm2).finite


def test_a_vote_holds_eight_generations() -> None:
    import torch

    from argosy.train.vote import Agree, Asks

    with pytest.raises(ValueError, match="8 generations"):
        Agree(asks=lambda: Asks(held=(1.0,)))(torch.tensor(3.0), torch.tensor(4.0))


def votes(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[list[float]]:
    import torch

    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined
    from argosy.train.vote import Agree, Asks

    with joined(Layout(dp_replicate=ranks), rank, Meeting("vote/1", Path(board))) as mesh:
        found = []
        for one in asked:
            mine = one[str(rank)]
            asks = Asks(
                mine.get("stop", False), mine.get("save", False), tuple([1.0] * (rank + 1) + [0.0] * (7 - rank))
            )
            vote = Agree(mesh.world, lambda asks=asks: asks)(torch.tensor(mine["loss"]), torch.tensor(1.0))  # type: ignore[misc]
            found.append([str(vote.loss), vote.norm2, vote.stop, vote.save, *vote.held, vote.finite])
        return found


def test_all_ranks_get_the_same_sums(pool: Pool) -> None:
    asked = [
        {"0": {"loss": 1.5, "stop": True}, "1": {"loss": 2.5, "save": True}},
        {"0": {"loss": 1.0}, "1": {"loss": math.nan}},  # one rank alone is enough
    ]
    first, second = pool.call(f"{HERE}:votes", asked, ranks=2)
    assert first == second
    assert first[0] == ["4.0", 2.0, 1.0, 1.0, 2.0, 1.0, 0, 0, 0, 0, 0, 0, True]
    assert first[1][0] == "nan"
    assert first[1][-1] is False
