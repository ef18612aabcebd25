"""Each class of parameters computes in its own type in every layout: what layers see, what is sent, and the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from argosy.job.schema import Job
from argosy.prove.options import Case, job_of, legal, plain, ranks_of, rows_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
TRAFFIC = "argosy.prove.traffic:step"
LAYOUTS: list[Case] = [
    {"replicate": 2},
    {"shard": 2, "zero": 1},
    {"shard": 2, "zero": 2, "norm": "layer", "biases": True, "qk_norm": "full"},
    {"shard": 2, "zero": 3, "tied": True},
    {"tp": 2, "sequence": True, "qk_norm": "full"},
    {"pp": 2, "schedule": "1f1b", "tied": True},
    {"shard": 2, "zero": 3, "tp": 2, "sequence": True, "qk_norm": "head", "norm": "layer", "biases": True},
    {"shard": 4, "zero": 3, "secondary": 2},
    {"pp": 2, "schedule": "interleaved", "virtual": 2, "layers": 4, "shard": 2, "zero": 2, "tied": True},
]
KINDS = {"norm": "float64", "embedding": "bfloat16", "head": "float64"}  # beside matrices in float32


def told(case: Case, precision: str, master: str, **kinds: str) -> Job:
    """The job of a case whose classes compute in `kinds`, with weights in `master`."""
    job = job_of(case, precision).model_dump(mode="json")
    job["train"] |= {"master": master, "reduce": master, "precision_of": kinds}
    return Job.model_validate(job)


def complete(more: Case) -> Case:
    case = {**plain(), "layers": 2, "micros": 2, **more}
    assert legal(case), more
    return case


class Watch:
    """Notes with which types and numbers norms, tables and head compute while it lasts."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {"norm": set(), "embedding": set(), "head": set(), "matrix": set()}
        self.exact = {"norm": True, "head": True}  # no digit of a weight was lost on its way to the layer
        self.stack = ExitStack()

    def __enter__(self) -> Watch:
        from argosy.model import decoder, layers

        for owner, name, note in (
            (layers.Norm, "forward", self.norm),
            (decoder.Decoder, "embed", self.embed),
            (decoder, "project", self.project),
            (decoder, "loss_sum", self.loss_sum),
        ):
            self.put(owner, name, note)
        return self

    def put(self, owner: Any, name: str, note: Any) -> None:
        """Let `note(what it gave, *arguments)` hear of every call of owner.name."""
        kept = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            made = kept(*arguments, **named)
            note(made, *arguments)
            return made

        self.stack.callback(setattr, owner, name, kept)
        setattr(owner, name, called)

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def norm(self, made: Any, norm: Any, x: Any) -> None:
        import torch

        from argosy.device.shards import local

        self.kinds["norm"].add(str(norm.kind))
        for weight in (norm.weight, norm.bias):
            if weight is not None:
                self.exact["norm"] &= torch.equal(local(weight).double(), digits(weight))

    def embed(self, made: Any, *rest: Any) -> None:
        import torch

        narrow = made.to(torch.bfloat16).to(made.dtype)
        self.kinds["embedding"].add("as bfloat16" if torch.equal(made, narrow) else "finer")

    def project(self, made: Any, x: Any, maps: Any) -> None:
        self.kinds["matrix"].add(str(x.dtype))

    def loss_sum(self, made: Any, hidden: Any, weight: Any, *rest: Any) -> None:
        import torch

        from argosy.device.shards import local

        self.kinds["head"].add(str(hidden.dtype))
        near = local(weight).double()
        self.exact["head"] &= not torch.equal(near, near.float().double())


def digits(vector: Any) -> Any:
    """Numbers for this rank's part of a norm's vector that no type but float64 knows, by their places in the whole."""
    import torch

    from argosy.device.shards import box

    (begin,), (end,) = box(vector)
    return 1 + torch.arange(begin + 1, end + 1, dtype=torch.float64) / 3e3


def seen(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each job what its layers see on this rank in one step, and which parameters are no DTensors."""
    import torch

    from argosy.device.shards import local
    from argosy.model.precisions import class_of
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors

    found, device = [], torch.device("cpu")
    for number, each in enumerate(asked):
        job = Job.model_validate(each)
        layout = layouts.of(job.layout, ranks)
        rows, length = job.batch.tokens // job.batch.sequence, job.batch.sequence
        batch = batch_of(1, rows=rows, sequence=length, packed=False, vocabulary=job.model.vocabulary or 0)
        with joined(layout, rank, Meeting(f"seen/{number}", Path(f"{board}-{number}"))) as mesh:
            laid = apply.decoder(job, mesh, device)
            named = laid.applied.named()
            with torch.no_grad():
                for name, parameter in named.items():
                    if class_of(name) == "norm":
                        local(parameter).copy_(digits(parameter))
            own = cut(batch, layout.data, layout.data_index(rank), int(job.batch.micro))
            with Watch() as watch:
                laid.execute([tensors(part, device) for part in own], scale=1 / batch.counted)
            laid.applied.check_gradients()
            plainly = [name for name, parameter in named.items() if not hasattr(parameter, "placements")]
        kinds = {name: sorted(values) for name, values in watch.kinds.items()}
        ends = [layout.stages_of(rank)[0] == 0, layout.stages_of(rank)[-1] == layout.stages - 1]
        found.append({"kinds": kinds, "exact": watch.exact, "plain": plainly, "ends": ends})
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_layers_see_each_class_in_its_type(pool: Pool, ranks: int) -> None:
    """Float64 norms and head keep digits that float32 does not have, tables lose theirs, matrices are in float32."""
    cases = [case for case in map(complete, LAYOUTS) if ranks_of(case) == ranks]
    jobs = [told(case, "float32", "float64", **KINDS).model_dump(mode="json") for case in cases]
    for answers in pool.call(f"{HERE}:seen", jobs, ranks=ranks):
        for case, found in zip(cases, answers, strict=True):
            first, last = found["ends"]
            assert found["kinds"]["norm"] == ["torch.float64"], case
            assert found["kinds"]["matrix"] == ["torch.float32"], case
            assert found["kinds"]["embedding"] == (["as bfloat16"] if first else []), case
            assert found["kinds"]["head"] == (["torch.float64"] if last else []), case
            assert found["exact"] == {"norm": True, "head": True}, case
            if (
                case["shard"] > 1
            ):  # norms in blocks are whole on every rank; the last one goes with the head, in its type
                assert all("norm" in name for name in found["plain"]), (case, found["plain"])
                assert any(name.startswith("blocks.") for name in found["plain"]), case
                assert "norm.weight" not in found["plain"], case


@pytest.fixture
def bench(pool: Pool) -> Iterator[Bench]:
    made = Bench(pool)
    yield made
    made.close()


@pytest.mark.parametrize("more", LAYOUTS, ids=lambda more: " ".join(f"{name}{value}" for name, value in more.items()))
def test_it_trains_as_the_reference_does(bench: Bench, more: Case) -> None:
    """Loss, every gradient, norm and weights after three clipped steps, within what matrices in float32 allow."""
    case = complete({**more, "clip": 0.05})
    kinds = dict.fromkeys(KINDS, "float64")
    found = bench.try_(replace(Trial.of(case, "float32"), job=told(case, "float32", "float64", **kinds)))
    assert found.ok, found.wrong


@pytest.mark.parametrize("more", [LAYOUTS[2], LAYOUTS[3], {"replicate": 2, "shard": 2, "zero": 3, "biases": True}])
def test_narrow_matrices_train_as_the_reference_does(bench: Bench, more: Case) -> None:
    """Bfloat16 matrices under ZeRO, beside norms that are kept whole and a head and tables in float32."""
    case = complete({**more, "clip": 0.05})
    job = told(case, "bfloat16", "float32", head="float32", embedding="float32")
    found = bench.try_(replace(Trial.of(case, "bfloat16"), job=job))
    assert found.ok, found.wrong


SENT: list[tuple[Case, dict[str, str]]] = [
    ({"shard": 2, "zero": 2, "tied": True}, {}),
    ({"shard": 2, "zero": 3, "norm": "layer", "biases": True}, {"head": "float32"}),
    ({"tp": 2, "sequence": True}, {"embedding": "float32"}),
    ({"replicate": 2, "shard": 2, "zero": 3, "qk_norm": "head"}, {}),
    ({"shard": 2, "zero": 1, "tp": 2, "sequence": True, "qk_norm": "head", "heads": "4/2"}, {"embedding": "float32"}),
    ({"pp": 2, "schedule": "1f1b", "shard": 2, "zero": 3}, {"norm": "bfloat16"}),
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_sent_are_those_of_the_closed_forms(pool: Pool, ranks: int) -> None:
    jobs = []
    for more, kinds in SENT:
        case = complete({**more, "micro": 2})
        if ranks_of(case) == ranks:
            job = told(case, "bfloat16", "float32", **kinds).model_dump(mode="json")
            job["batch"] |= {"sequence": 12, "tokens": 12 * rows_of(case)}
            jobs.append(job)
    for rank, answer in enumerate(pool.call(TRAFFIC, {"jobs": jobs}, ranks=ranks)):
        for job, found in zip(jobs, answer, strict=True):
            assert found["heard"] == found["formula"], (rank, job["layout"], job["train"]["precision_of"])


def scored(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The logits of a text on this rank, and their type."""
    import torch

    from argosy.evaluate.generate import logits
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts

    job = Job.model_validate(asked)
    layout = layouts.of(job.layout, ranks)
    with joined(layout, rank, Meeting("test", Path(board))) as mesh:
        laid = apply.decoder(job, mesh, torch.device("cpu"))
        whole = laid.applied.whole.eval()
        tokens = (torch.arange(2 * 12) * 5 % 31).view(2, 12)
        text = (tokens, torch.arange(12).expand(2, 12), torch.ones(2, 12, dtype=torch.int32))
        with torch.no_grad():
            found = laid.scores(*text) if laid.scores is not None else whole(logits, *text)
        return {"type": str(found.dtype), "logits": found.double().tolist()}


@pytest.mark.parametrize("head", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "more",
    [
        {"pp": 2, "schedule": "interleaved", "virtual": 2, "layers": 4},  # rank 0 has a stage that receives
        {"pp": 3, "schedule": "1f1b", "layers": 4},  # so has the rank in the middle
    ],
    ids=["interleaved", "three ranks"],
)
def test_logits_of_a_text_reach_every_rank_in_the_heads_own_type(pool: Pool, more: Case, head: str) -> None:
    """Between stages activations are bfloat16, whatever the head computes in."""
    case, job = complete(more), {}
    for one in (case, {**complete({}), "layers": case["layers"]}):
        job[ranks_of(one)] = told(one, "bfloat16", "float32", head=head).model_dump(mode="json")
    found = pool.call(f"{HERE}:scored", job[case["pp"]], ranks=case["pp"])
    (alone,) = pool.call(f"{HERE}:scored", job[1], ranks=1)
    assert {one["type"] for one in found} == {alone["type"]} == {f"torch.{head}"}
    assert all(one["logits"] == alone["logits"] for one in found)
