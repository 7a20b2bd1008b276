"""What a cost card refuses to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpeft_bench.errors import RecordError
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import CardStatus, CardWhere, CostCard, Memory
from vpeft_bench.records.environment import environment


def where(finished: str = "2026-01-02T03:04:06+00:00") -> CardWhere:
    return CardWhere(**environment(), started="2026-01-02T03:04:05+00:00", finished=finished)


def oom(finished: str = "2026-01-02T03:04:06+00:00") -> CostCard:
    asked = {"method": {"name": "full"}}
    return CostCard("a/b/c", CardStatus.OOM, "out of memory", asked, None, where(finished))


@pytest.mark.parametrize("finished", ["2026-01-02T03:04:05", "2026-01-02T03:04:05+02:00"])
def test_a_time_that_is_not_utc(finished: str) -> None:
    with pytest.raises(ValueError, match=r"finished is '2026-01-02T03:04:05.*not in UTC"):
        where(finished)


def test_a_card_without_measurement_says_why() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        CostCard("a/b/c", CardStatus.OK, None, {}, None, where())
    with pytest.raises(ValueError, match="an error and no"):
        CostCard("a/b/c", CardStatus.FAILED, None, {}, None, where())


@pytest.mark.parametrize("activations", [None, 59, 61])
def test_a_split_of_memory_adds_up(activations: int | None) -> None:
    parts = {"weights": 20, "gradients": 8, "optimizer_state": 12, "saved_for_backward": 50}
    nothing = {"reserved": None, "resident_growth": None}
    Memory(allocated=100, activations=60, **parts, **nothing)
    with pytest.raises(ValueError, match=r"sum up|activations are known"):
        Memory(allocated=100, activations=activations, **parts, **nothing)


def test_read_back_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "x" / cards.CARD_NAME
    cards.write(oom(), path)
    assert cards.read(path) == oom()
    assert [card for _, card in cards.find([tmp_path]).cards] == [oom()]
    path.write_text(path.read_text().replace('"oom"', '"fine"'))
    with pytest.raises(RecordError, match=r"'fine'|fine"):
        cards.read(path)
    assert len(cards.find([tmp_path, tmp_path / "absent"]).problems) == 2
